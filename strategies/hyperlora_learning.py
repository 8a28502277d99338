"""How HyperLoRA's server learns: from the validation loss of the clients at the start that they received.

To first order the loss of client i changes with its start by <G_i, .>. The start is a sum of terms with coefficients
(the attention weights and strengths of psi, the gates of corrector and generator), so
d loss / d parameter = sum over parts and terms of <G_i, term> d coefficient / d parameter,
which autograd takes from the surrogate sum_i sum <G_i, term> coefficient_i(parameters). One Adam step per round.

Temperature and metric of the attention are learned on the entries of the others alone, as if the client had none of
its own: how much a client trusts its own past (``trust``) decides what it can still build on later, which the loss at
its present start does not know.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.adapter import Adapter
from models.start_gradient import GradientSpec, directional_derivatives
from models.synthesizer import attention
from strategies.hyperlora_state import HyperLoraState, attended
from strategies.method import ClientUpdate

LEARNABLE = {
    "attention": ("log_temperature", "log_metric"),
    "trust": ("self_logit",),
    "strength": ("strength",),
    "gates": ("carried", "generator"),
}
FROZEN_LOW, FROZEN_HIGH = -6.0, 6.0


@dataclass(frozen=True)
class Slopes:
    """Derivatives of one client's validation loss, each (parts,) or (parts, N), parts in the adapter's order.

    Attributes:
        chosen: the entries of the memory that the start attended to, with or without its own, as indices in the order
            of the memory's names.
        memory: along the deviation of each of them.
        carried: along what the corrector carries; None where it carries nothing.
        generated: along what the generator made for the client; None where there is none.
    """

    chosen: Tensor
    memory: Tensor
    carried: Tensor | None
    generated: Tensor | None


def measure_slopes(
    update: ClientUpdate, state: HyperLoraState, generated: Adapter | None, spec: GradientSpec
) -> Slopes:
    """Return the slopes of the client's validation loss at the start that it was sent from ``state``."""
    extra = [one for one in (state.carried, generated) if one is not None]
    names = sorted({*attended(state, update.card)[0], *attended(state, update.card, own=False)[0]})
    deviations = [state.memory[name] for name in names]
    slopes = directional_derivatives(update.gradient, update.start, [*deviations, *extra], spec)
    table = torch.stack([slopes[part] for part in state.anchor.parts])
    count, place = len(names), {name: index for index, name in enumerate(state.names())}
    chosen = torch.tensor([place[name] for name in names])
    rest = iter(table[:, count:].unbind(dim=1))
    carried = next(rest) if state.carried is not None else None
    return Slopes(chosen, table[:, :count], carried, next(rest) if generated is not None else None)


def surrogate(
    parameters: Mapping[str, Tensor], state: HyperLoraState, updates: Sequence[ClientUpdate], slopes: Sequence[Slopes]
) -> Tensor:
    """Return the mean over clients of sum <G_i, term> coefficient, whose gradient is that of their validation loss."""
    keys = state.keys()
    share = torch.sigmoid(parameters["generator"])
    total = torch.zeros(())
    for update, slope in zip(updates, slopes, strict=True):
        query = state.standardize(state.description_of(update.card))
        own = state.own(update.card.client_id)
        alpha = attention(_but(parameters, "attention"), query, keys, own, state.groups)
        parts = (slope.memory @ alpha[slope.chosen]) * parameters["strength"]
        if not bool(own.all()):
            others = attention(parameters, query, keys.without(own), own[~own], state.groups)
            place = torch.nonzero(~own[slope.chosen]).flatten()
            among = (torch.cumsum(~own, dim=0) - 1)[slope.chosen[place]]
            learning = (slope.memory[:, place] @ others[among]) * parameters["strength"].detach()
            total = total + learning.sum()
        if slope.generated is not None:
            parts = (1 - share) * parts + share * slope.generated
        total = total + parts.sum()
        if slope.carried is not None:
            total = total + (torch.sigmoid(parameters["carried"]) * slope.carried).sum()
    return total / len(updates)


def _but(parameters: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Return the parameters with those of ``group`` held fixed."""
    return {name: value.detach() if name in LEARNABLE[group] else value for name, value in parameters.items()}


def learn(
    state: HyperLoraState,
    updates: Sequence[ClientUpdate],
    generated: Sequence[Adapter | None],
    *,
    spec: GradientSpec,
    learning_rate: float,
    groups: Sequence[str],
) -> HyperLoraState:
    """Return ``state`` after one step of psi and the gates; updates that tell no gradient are passed over.

    Args:
        state: as it was when the starts were made.
        updates: the round's replies.
        generated: by update, what the generator made for the client, or None.
        spec: what the gradients in the replies are.
        learning_rate: of Adam, in the units of the parameters (logits and logarithms).
        groups: which of ``LEARNABLE`` are learned; the others stay as they are.
    """
    told = [(one, made) for one, made in zip(updates, generated, strict=True) if one.gradient]
    if not told or not state.memory or not learning_rate or not groups:
        return state
    clients = [one for one, _ in told]
    slopes = [measure_slopes(one, state, made, spec) for one, made in told]
    parameters = {name: value.clone().requires_grad_() for name, value in {**state.psi, **state.gates}.items()}
    chosen = [parameters[name] for group in groups for name in LEARNABLE[group]]
    optimizer = torch.optim.Adam(chosen, lr=learning_rate)
    if state.optimizer is not None:
        optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))  # it would step on the state's own
    torch.autograd.backward(surrogate(parameters, state, clients, slopes), inputs=chosen)
    optimizer.step()
    learned = {name: value.detach().clone() for name, value in parameters.items()}
    return replace(
        state,
        psi={name: learned[name] for name in state.psi},
        gates={name: learned[name].clamp(FROZEN_LOW, FROZEN_HIGH) for name in state.gates},
        optimizer=optimizer.state_dict(),
    )
