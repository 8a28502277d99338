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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.start_gradient import GradientSpec
from models.synthesizer import attention, attention_to_others
from strategies.hyperlora_generator import ServedGenerator
from strategies.hyperlora_slopes import Slopes, measure_slopes
from strategies.hyperlora_state import HyperLoraState
from strategies.method import ClientUpdate

LEARNABLE = {
    "attention": ("log_temperature", "log_metric"),
    "trust": ("self_logit",),
    "strength": ("strength",),
    "gates": ("carried", "generator"),
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
        if slope.carried is not None:
            total = total + (torch.sigmoid(parameters["carried"]) * slope.carried).sum()
    return total / len(updates)


def _along_memory(
    parameters: Mapping[str, Tensor], state: HyperLoraState, updates: Sequence[ClientUpdate], slopes: Sequence[Slopes]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each client the slope of its mixture (parts,), and what temperature and metric are learned from."""
    if all(one.chosen is None for one in slopes):
        yield from ((one.memory[:, 0], torch.zeros(())) for one in slopes)
        return
    queries = state.standardize(torch.stack([state.description_of(one.card) for one in updates]))
    own = state.own([one.card.client_id for one in updates])
    alpha = attention(_but(parameters, "attention"), queries, state.keys, own, state.groups)
    others = attention_to_others(parameters, queries, state.keys, own, state.groups)
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
    told = [one for one in updates if one.gradient]
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
