"""Slopes of the clients' validation losses at the starts that they were sent, along what the starts are made of.

A loss is linear here, so its slope along a mixture needs no slope along every entry: where the attention itself is not
learned, one direction a client is enough, and those of a whole cohort are multiplied at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapter import Adapter
from models.factor_stack import FactorStack, LinearMap
from models.mixtures import Mixtures
from models.start_gradient import GradientSpec, directional_derivatives, tangent_coordinates
from models.synthesizer import attention
from strategies.hyperlora_generator import ServedGenerator, stack
from strategies.hyperlora_mixing import alike, mixed_memory
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
    starts, count = stack([one.start for one in updates]), len(updates)
    gradient = {part: torch.stack([one.gradient[part] for one in updates]) for part in state.anchor.parts}

    def along(low_rank: Mapping[str, LinearMap], heads: Tensor) -> Tensor:
        """Return the slopes (clients, parts) along one direction for each client."""
        coordinates = spec.compress(tangent_coordinates(starts, low_rank, heads))
        return torch.stack([(coordinates[part] * gradient[part]).sum(dim=1) for part in state.anchor.parts], dim=1)

    carried = None if state.carried is None else along(*_same_for_all(state.carried, count))
    generated = None
    if generator is not None:
        made = generator.deviations(state, torch.stack([state.description_of(one.card) for one in updates]))
        generated = along({kind: FactorStack.of(one) for kind, one in made.low_rank.items()}, made.head)
    if taken is not None:
        memory = [_along_entries(one, state, row, spec) for one, row in zip(updates, taken, strict=True)]
    else:
        used = rows.any(dim=0).nonzero().flatten()
        entries = [state.memory[state.names[index]] for index in used.tolist()]
        weights = dict.fromkeys(state.anchor.parts, rows[:, used])
        mixed = mixed_memory(entries, weights, anchor=state.anchor, with_anchor=False)
        memory = [(None, one[:, None]) for one in along(mixed.low_rank, mixed.heads)]
    return [
        Slopes(
            chosen,
            table,
            None if carried is None else carried[index],
            None if generated is None else generated[index],
        )
        for index, (chosen, table) in enumerate(memory)
    ]


def _along_entries(
    update: ClientUpdate, state: HyperLoraState, row: Tensor, spec: GradientSpec
) -> tuple[Tensor | None, Tensor]:
    chosen = row.nonzero().flatten()
    deviations = [state.memory[state.names[index]] for index in chosen.tolist()]
    slopes = directional_derivatives(update.gradient, update.start, deviations, spec)
    return chosen, torch.stack([slopes[part] for part in state.anchor.parts])


def _same_for_all(adapter: Adapter, count: int) -> tuple[dict[str, Mixtures], Tensor]:
    """Return one adapter as the direction of every client."""
    maps = {kind: Mixtures(one, torch.ones(count, one.rank)) for kind, one in adapter.low_rank.items()}
    return maps, adapter.head.expand(count, -1, -1)
