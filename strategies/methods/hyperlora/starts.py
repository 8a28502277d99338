"""The starts of a whole cohort: T_r(dW_anchor + (1 - g) strength sum_j alpha_ij D_j + g G(s_i)) for all clients i.

What is added to the anchor for a client without an entry in the memory is times a strength that is chosen by probes
(:mod:`strategies.methods.hyperlora.probes`).

The generator makes all deviations in one pass, the attention is one table, and clients that attend to much the same
entries are mixed and truncated together (:mod:`models.lowrank.mixtures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter, combine
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import Factors
from models.lowrank.mixtures import Mixtures, distinct_terms, truncated_mixtures
from models.personalization.synthesizer import Synthesizer
from strategies.methods.hyperlora.generator import ServedGenerator
from strategies.methods.hyperlora.state import HyperLoraState, attended

MOST_SPREAD = 5.0
"""How many times more entries than one client attends to a group may: a large product is so much faster per term."""
GROUP_NUMBERS = 2**24
"""Numbers in the largest block of vectors of a group."""
ENTRY_NUMBERS = 2**26
"""Numbers of the largest kind of all entries that a group attends to, beyond what its first client does."""
BLOCK = 12


@dataclass(frozen=True, eq=False)
class MixedMemory:
    """What a group of n clients takes of the memory.

    Attributes:
        low_rank: kind -> the mixtures of all n.
        heads: (n, classes, width + 1), mixed.
    """

    low_rank: Mapping[str, Mixtures]
    heads: Tensor


def alike(rows: Tensor, template: Adapter) -> list[list[int]]:
    """Divide clients into groups that attend to much the same entries.

    Args:
        rows: (clients, N) attention, zero where nothing is taken.
        template: an adapter of the model, whose size bounds a group.

    Returns:
        Indices of clients; every client is in one group, and the same rows give the same groups.
    """
    size = max(
        factors.B.numel() // factors.rank + factors.A.numel() // factors.rank for factors in template.low_rank.values()
    )
    most, most_entries = max(1, GROUP_NUMBERS // (BLOCK * size)), ENTRY_NUMBERS // (2 * template.rank * size)
    taken = rows != 0
    overlap = taken.float() @ taken.float().T
    rest, groups = list(range(len(rows))), []
    while rest:
        first = rest[0]
        group, union, own = [first], taken[first].clone(), int(taken[first].sum())
        for other in sorted(rest[1:], key=lambda one: (-float(overlap[first, one]), one)):
            joint, total = union | taken[other], own + int(taken[other].sum())
            entries = int(joint.sum())
            alike_enough = entries * (len(group) + 1) <= MOST_SPREAD * max(total, 1)
            if len(group) < most and alike_enough and (entries <= most_entries or entries == int(union.sum())):
                group, union, own = [*group, other], joint, total
        groups.append(sorted(group))
        rest = sorted(set(rest) - set(group))
    return groups


def mixed_memory(
    entries: Sequence[Adapter], weights: Tensor, *, anchor: Adapter, own: AdapterBatch | None = None
) -> MixedMemory:
    """Return anchor + sum_j w_ij D_j + own_i for n clients.

    Args:
        entries: the D_j, M of them.
        weights: w, (n, M).
        anchor: the anchor, which deviations of this round hold as well.
        own: n adapters, already weighted; None for nothing.
    """
    low_rank = {}
    for kind, base in anchor.low_rank.items():
        terms = [Factors(-base.B, base.A), *(entry.low_rank[kind] for entry in entries)]
        shared, membership = distinct_terms(terms)
        columns = weights @ membership[1:] - membership[0]
        low_rank[kind] = Mixtures(shared, columns, None if own is None else own.low_rank[kind])
    heads = anchor.head.expand(len(weights), -1, -1)
    if entries:
        heads = heads + torch.einsum("nm,mcw->ncw", weights, torch.stack([entry.head for entry in entries]))
    return MixedMemory(low_rank, heads if own is None else heads + own.head)


def make_starts(
    state: HyperLoraState,
    cards: Sequence[ClientCard],
    synthesizer: Synthesizer,
    generator: ServedGenerator | None,
    *,
    as_newcomers: bool = False,
) -> list[Adapter]:
    """Return the starts of ``cards``, in their order.

    Args:
        state: of the server; what clients without an entry in its memory get is times its ``newcomer_strength``.
        cards: the clients.
        synthesizer: attends to the memory, unless its strength is 0.
        generator: None where none serves yet.
        as_newcomers: make them as if none of the clients had an entry.
    """
    known = torch.tensor([card.client_id in state.memory and not as_newcomers for card in cards])
    reads = synthesizer.strength and len(state.memory) > as_newcomers
    rows = attended(state, cards, synthesizer, own=not as_newcomers) if reads else torch.zeros(len(cards), 0)
    starts: dict[int, Adapter] = {}
    for group in alike(rows, state.anchor):
        chosen = [cards[index] for index in group]
        made = _starts_of_group(state, chosen, synthesizer.strength * rows[group], known[group], generator)
        starts |= dict(zip(group, made, strict=True))
    return [starts[index] for index in range(len(cards))]


def _starts_of_group(
    state: HyperLoraState,
    cards: Sequence[ClientCard],
    rows: Tensor,
    known: Tensor,
    generator: ServedGenerator | None,
) -> list[Adapter]:
    used = rows.any(dim=0).nonzero().flatten()
    scale = torch.where(known, 1.0, state.newcomer_strength)
    if not bool(scale.any()) or (generator is None and not len(used)):
        return [state.anchor] * len(cards)
    entries = [state.memory[state.names[index]] for index in used.tolist()]
    share, own = torch.zeros(len(cards)), None
    if generator:  # all of a start is generated where nothing is attended to
        share = torch.where(rows.any(dim=1), generator.share, 1.0)
        vectors = torch.stack([state.vector_of(card) for card in cards])
        own = generator.deviations(state, vectors).weighted(scale * share)
    weights = rows[:, used] * (scale * (1 - share))[:, None]
    mixed = mixed_memory(entries, weights, anchor=state.anchor, own=own)
    low_rank = {
        kind: truncated_mixtures(X, state.anchor.rank, state.anchor.low_rank[kind])
        for kind, X in mixed.low_rank.items()
    }
    return list(AdapterBatch(low_rank, mixed.heads))


def generated_start(state: HyperLoraState, card: ClientCard, generator: ServedGenerator) -> Adapter:
    """Return T_r(dW_anchor + G(s)), the client's start without any memory."""
    made = generator.deviations(state, state.vector_of(card)[None])[0]
    anchor = state.served_anchor
    return combine([anchor, made], [1.0, 1.0]).truncated(anchor.rank).aligned(anchor)
