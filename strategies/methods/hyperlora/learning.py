"""How HyperLoRA's server learns: from the validation loss of the clients at the start that they received.

To first order the loss of client i changes with its start by <G_i, .>. The start is a sum of terms with coefficients
(the attention weights and strengths of psi, the gates of corrector and generator), so
d loss / d parameter = sum over parts and terms of <G_i, term> d coefficient / d parameter,
which autograd takes from the surrogate sum_i sum <G_i, term> coefficient_i(parameters). One Adam step per round.

Temperature and metric of the attention are learned on the entries of the others alone, as if the client had none of
its own: how much a client trusts its own past (``trust``) decides what it can still build on later, which the loss at
its present start does not know.

The inner products are slopes of the clients' validation losses along what their starts are made of: each client's
gradient becomes a matrix in product space once, and its inner products with all
entries of the memory that the group attends to, with what the corrector carries and with what was generated are taken
together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.adapters.adapter import HEAD
from models.adapters.batch import AdapterBatch
from models.adapters.gradient import GradientSpec, pulled_back, slopes_along
from models.lowrank.factors import inner
from models.personalization.synthesizer import attention, attention_to_others
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.generator import ServedGenerator
from strategies.methods.hyperlora.starts import alike
from strategies.methods.hyperlora.state import HyperLoraState, attended


@dataclass(frozen=True)
class Slopes:
    """Derivatives of one client's validation loss, each (parts,) or (parts, J), parts in the adapter's order.

    Attributes:
        chosen: the J entries of the memory that the start attended to, with or without its own, as indices in the order
            of the memory's names; None where ``memory`` is along their mixture, J = 1.
        memory: along the deviation of each of them.
        residual: along what the corrector carries; None where it carries nothing.
        generated: along what the generator made for the client; None where there is none.
    """

    chosen: Tensor | None
    memory: Tensor
    residual: Tensor | None
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
    cards = [update.card for update in updates]
    taken = (attended(state, cards) != 0) | (attended(state, cards, own=False) != 0)
    embeddings = state.standardize(torch.stack([state.vector_of(card) for card in cards]))
    own = state.own([card.client_id for card in cards])
    rows = attention(state.psi, embeddings, state.keys, own, state.groups) * taken
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
    told = {part: torch.stack([update.gradient[part] for update in updates]) for part in state.anchor.parts}
    gradients = pulled_back(told, AdapterBatch.stack([update.start for update in updates]), spec)
    used = (rows if taken is None else taken).any(dim=0).nonzero().flatten()
    terms = [state.memory[state.names[index]] for index in used.tolist()]
    residual = [] if state.residual is None else [state.residual]
    table = _by_part(slopes_along(gradients, [*terms, *residual]), state)
    along_memory = table[..., : len(terms)]
    generated = None
    if generator is not None:
        made = generator.deviations(state, torch.stack([state.vector_of(update.card) for update in updates]))
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
            table[index, :, -1] if residual else None,
            None if generated is None else generated[index],
        )
        for index, (chosen, along) in enumerate(memory)
    ]


def _paired(gradients: AdapterBatch, directions: AdapterBatch) -> dict[str, Tensor]:
    """Return by part the inner product of each gradient of a batch of n with its own direction, (n,)."""
    slopes = {
        kind: inner(factors, directions.low_rank[kind]).sum(dim=-1) for kind, factors in gradients.low_rank.items()
    }
    return slopes | {HEAD: (gradients.head * directions.head).sum(dim=(1, 2))}


def _by_part(slopes: Mapping[str, Tensor], state: HyperLoraState) -> Tensor:
    """Return values (n, ...) by part as one table (n, parts, ...)."""
    return torch.stack([slopes[part] for part in state.anchor.parts], dim=1)


LEARNABLE = {
    "attention": ("log_temperature", "log_metric"),
    "trust": ("self_logit",),
    "strength": ("strength",),
    "gates": ("residual", "generator"),
}
FROZEN_LOW, FROZEN_HIGH = -6.0, 6.0


def surrogate(
    parameters: Mapping[str, Tensor], state: HyperLoraState, updates: Sequence[ClientUpdate], slopes: Sequence[Slopes]
) -> Tensor:
    """Return the mean over clients of sum <G_i, term> coefficient, whose gradient is that of their validation loss."""
    share = torch.sigmoid(parameters["generator"])
    along = _along_memory(parameters, state, updates, slopes)
    total = torch.zeros(())
    for slope, (mixture, learning) in zip(slopes, along, strict=True):
        parts = mixture * parameters["strength"]
        total = total + learning
        if slope.generated is not None:
            parts = (1 - share) * parts + share * slope.generated
        total = total + parts.sum()
        if slope.residual is not None:
            total = total + (torch.sigmoid(parameters["residual"]) * slope.residual).sum()
    return total / len(updates)


def _along_memory(
    parameters: Mapping[str, Tensor], state: HyperLoraState, updates: Sequence[ClientUpdate], slopes: Sequence[Slopes]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each client the slope of its mixture (parts,), and what temperature and metric are learned from."""
    if all(one.chosen is None for one in slopes):
        yield from ((one.memory[:, 0], torch.zeros(())) for one in slopes)
        return
    embeddings = state.standardize(torch.stack([state.vector_of(update.card) for update in updates]))
    own = state.own([update.card.client_id for update in updates])
    alpha = attention(_but(parameters, "attention"), embeddings, state.keys, own, state.groups)
    others = attention_to_others(parameters, embeddings, state.keys, own, state.groups)
    for row, slope in enumerate(slopes):
        learning = (slope.memory @ others[row, slope.chosen]) * parameters["strength"].detach()
        yield slope.memory @ alpha[row, slope.chosen], learning.sum()


def _but(parameters: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Return the parameters with those of ``group`` held fixed."""
    return {name: value.detach() if name in LEARNABLE[group] else value for name, value in parameters.items()}


def learn(
    state: HyperLoraState,
    updates: Sequence[ClientUpdate],
    generator: ServedGenerator | None,
    *,
    spec: GradientSpec,
    learning_rate: float,
    groups: Sequence[str],
) -> HyperLoraState:
    """Return ``state`` after one step of psi and the gates; updates that tell no gradient are passed over.

    Args:
        state: as it was when the starts were made.
        updates: the round's replies.
        generator: what made part of the starts, or None.
        spec: what the gradients in the replies are.
        learning_rate: of Adam, in the units of the parameters (logits and logarithms).
        groups: which of ``LEARNABLE`` are learned; the others stay as they are.
    """
    told = [update for update in updates if update.gradient]
    if not told or not state.memory or not learning_rate or not groups:
        return state
    entrywise = not {"attention", "trust"}.isdisjoint(groups)
    slopes = measure_slopes(told, state, generator, spec, entrywise=entrywise)
    parameters = {name: value.clone().requires_grad_() for name, value in {**state.psi, **state.gates}.items()}
    chosen = [parameters[name] for group in groups for name in LEARNABLE[group]]
    optimizer = torch.optim.Adam(chosen, lr=learning_rate)
    if state.optimizer is not None:
        optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))  # it would step on the state's own
    torch.autograd.backward(surrogate(parameters, state, told, slopes), inputs=chosen)
    optimizer.step()
    learned = {name: value.detach().clone() for name, value in parameters.items()}
    return replace(
        state,
        psi={name: learned[name] for name in state.psi},
        gates={name: learned[name].clamp(FROZEN_LOW, FROZEN_HIGH) for name in state.gates},
        optimizer=optimizer.state_dict(),
    )
