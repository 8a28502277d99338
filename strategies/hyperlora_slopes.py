"""Slopes of the clients' validation losses at the starts that they were sent, along what the starts are made of.

A loss is linear here: each client's gradient becomes a matrix in product space once, and its inner products with all
entries of the memory that the group attends to, with what the corrector carries and with what was generated are taken
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapter import HEAD, Adapter
from models.low_rank import inner
from models.start_gradient import GradientSpec, pulled_back, slopes_along
from models.synthesizer import attention
from strategies.hyperlora_generator import ServedGenerator, stack
from strategies.hyperlora_mixing import alike
from strategies.hyperlora_state import HyperLoraState, attended
from strategies.method import ClientUpdate


@dataclass(frozen=True)
class Slopes:
    """Derivatives of one client's validation loss, each (parts,) or (parts, J), parts in the adapter's order.

    Attributes:
        chosen: the J entries of the memory that the start attended to, with or without its own, as indices in the order
            of the memory's names; None where ``memory`` is along their mixture, J = 1.
        memory: along the deviation of each of them.
        carried: along what the corrector carries; None where it carries nothing.
        generated: along what the generator made for the client; None where there is none.
    """

    chosen: Tensor | None
    memory: Tensor
    carried: Tensor | None
    generated: Tensor | None


def measure_slopes(
    updates: Sequence[ClientUpdate],
    state: HyperLoraState,
    generator: ServedGenerator | None,
    spec: GradientSpec,
    *,
    entrywise: bool,
) -> list[Slopes]:
    """Return the slopes of every client at the start that it was sent from ``state``, in the order of ``updates``.

    Args:
        updates: replies that tell a gradient.
        state: as it was when the starts were made.
        generator: what made part of them, or None.
        spec: what the gradients are.
        entrywise: whether slopes along every entry are wanted, or along their mixture alone.
    """
    cards = [one.card for one in updates]
    taken = (attended(state, cards) != 0) | (attended(state, cards, own=False) != 0)
    queries = state.standardize(torch.stack([state.description_of(card) for card in cards]))
    own = state.own([card.client_id for card in cards])
    rows = attention(state.psi, queries, state.keys, own, state.groups) * taken
    slopes: dict[int, Slopes] = {}
    for group in alike(rows, state.anchor):
        members = [updates[index] for index in group]
        found = _of_group(members, state, rows[group], generator, spec, taken[group] if entrywise else None)
        slopes |= dict(zip(group, found, strict=True))
    return [slopes[index] for index in range(len(updates))]


def _of_group(
    updates: Sequence[ClientUpdate],
    state: HyperLoraState,
    rows: Tensor,
    generator: ServedGenerator | None,
    spec: GradientSpec,
    taken: Tensor | None,
) -> list[Slopes]:
    """Return the slopes of some clients; along the entries of ``taken`` (clients, N) where that is given."""
    told = {part: torch.stack([one.gradient[part] for one in updates]) for part in state.anchor.parts}
    gradients = pulled_back(told, stack([one.start for one in updates]), spec)
    used = (rows if taken is None else taken).any(dim=0).nonzero().flatten()
    terms = [state.memory[state.names[index]] for index in used.tolist()]
    carried = [] if state.carried is None else [state.carried]
    table = _by_part(slopes_along(gradients, [*terms, *carried]), state)
    along_memory = table[..., : len(terms)]
    generated = None
    if generator is not None:
        made = generator.deviations(state, torch.stack([state.description_of(one.card) for one in updates]))
        generated = _by_part(_paired(gradients, made), state)
    memory: list[tuple[Tensor | None, Tensor]]
    if taken is None:
        memory = [(None, one) for one in (along_memory * rows[:, None, used]).sum(dim=-1, keepdim=True)]
    else:
        memory = [(used[row], one[:, row]) for one, row in zip(along_memory, taken[:, used], strict=True)]
    return [
        Slopes(
            chosen,
            along,
            table[index, :, -1] if carried else None,
            None if generated is None else generated[index],
        )
        for index, (chosen, along) in enumerate(memory)
    ]


def _paired(gradients: Adapter, directions: Adapter) -> dict[str, Tensor]:
    """Return by part the inner product of each gradient of a batch of n with its own direction, (n,)."""
    slopes = {kind: inner(one, directions.low_rank[kind]).sum(dim=-1) for kind, one in gradients.low_rank.items()}
    return slopes | {HEAD: (gradients.head * directions.head).sum(dim=(1, 2))}


def _by_part(slopes: Mapping[str, Tensor], state: HyperLoraState) -> Tensor:
    """Return values (n, ...) by part as one table (n, parts, ...)."""
    return torch.stack([slopes[part] for part in state.anchor.parts], dim=1)
