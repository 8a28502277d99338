"""The starts of a whole cohort: T_r(dW_anchor + (1 - g) sum_j strength alpha_ij D_j + g G(s_i)) for all clients i.

What is added to the anchor for a client without an entry in the memory is times a strength that is chosen by rehearsal
(:mod:`strategies.hyperlora_newcomers`).

The generator makes all deviations in one pass, the attention is one table, and clients that attend to much the same
entries are truncated together (:mod:`models.mixture_truncation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.adapter import HEAD, Adapter
from models.low_rank import Factors
from models.mixture_truncation import truncated_mixtures
from protocol.signature_messages import ClientCard
from strategies.hyperlora_generator import ServedGenerator, one_of_batch
from strategies.hyperlora_mixing import alike, mixed_memory
from strategies.hyperlora_state import HyperLoraState, attended


def make_starts(
    state: HyperLoraState,
    cards: Sequence[ClientCard],
    *,
    generator: ServedGenerator | None,
    attends: bool,
    newcomer_share: float = 0.0,
    as_newcomers: bool = False,
) -> list[Adapter]:
    """Return the starts of ``cards``, in their order.

    Args:
        state: of the server; what clients without an entry in its memory get is times its ``newcomer_strength``.
        cards: the clients.
        generator: None where none serves yet.
        attends: whether the memory is attended to.
        newcomer_share: least share of the generator in the start of a client without an entry in the memory.
        as_newcomers: make them as if none of the clients had an entry.
    """
    known = torch.tensor([card.client_id in state.memory and not as_newcomers for card in cards])
    reads = attends and len(state.memory) > as_newcomers
    rows = attended(state, cards, own=not as_newcomers) if reads else torch.zeros(len(cards), 0)
    starts: dict[int, Adapter] = {}
    for group in alike(rows, state.anchor):
        chosen = [cards[index] for index in group]
        made = _starts_of_group(state, chosen, rows[group], known[group], generator, newcomer_share)
        starts |= dict(zip(group, made, strict=True))
    return [starts[index] for index in range(len(cards))]


def _starts_of_group(
    state: HyperLoraState,
    cards: Sequence[ClientCard],
    rows: Tensor,
    known: Tensor,
    generator: ServedGenerator | None,
    newcomer_share: float,
) -> list[Adapter]:
    used = rows.any(dim=0).nonzero().flatten()
    if generator is None and not len(used):
        return [state.anchor] * len(cards)
    parts = state.anchor.parts
    share = _generated_share(state, rows, known, newcomer_share) if generator else torch.zeros(len(cards), len(parts))
    scale = torch.where(known, 1.0, state.newcomer_strength)
    entries = [state.memory[state.names[index]] for index in used.tolist()]
    strength = state.psi["strength"]
    weights = {
        part: rows[:, used] * (strength[place] * (scale * (1 - share[:, place]))[:, None])
        for place, part in enumerate(parts)
    }
    own = None
    if generator:
        descriptions = torch.stack([state.description_of(card) for card in cards])
        shares = {part: scale * share[:, place] for place, part in enumerate(parts)}
        own = weighted_batch(generator.deviations(state, descriptions), shares)
    mixed = mixed_memory(entries, weights, anchor=state.anchor, own=own)
    low_rank = {
        kind: truncated_mixtures(X, state.anchor.rank, state.anchor.low_rank[kind])
        for kind, X in mixed.low_rank.items()
    }
    batch = Adapter(low_rank, mixed.heads)
    return [one_of_batch(batch, index) for index in range(len(cards))]


def _generated_share(state: HyperLoraState, rows: Tensor, known: Tensor, newcomer_share: float) -> Tensor:
    """Return how much of each start is generated, (clients, parts): the learned gate, more for who has no entry.

    All of it where nothing is attended to.
    """
    learned = torch.sigmoid(state.gates["generator"])
    least = torch.where(known, 0.0, newcomer_share)
    return torch.where(rows.any(dim=1, keepdim=True), torch.maximum(learned, least[:, None]), torch.ones(()))


def weighted_batch(batch: Adapter, weights: Mapping[str, Tensor]) -> Adapter:
    """Return every adapter of a batch of n times its weight (n,), by part."""
    low_rank = {
        kind: Factors(one.B * weights[kind][:, None, None, None], one.A) for kind, one in batch.low_rank.items()
    }
    return Adapter(low_rank, batch.head * weights[HEAD][:, None, None])


def generated_start(state: HyperLoraState, card: ClientCard, generator: ServedGenerator) -> Adapter:
    """Return T_r(dW_anchor + G(s)), the client's start without any memory."""
    return make_starts(replace(state, newcomer_strength=1.0), [card], generator=generator, attends=False)[0]
