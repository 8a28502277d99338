"""HyperLoRA: every client starts from an adapter made for its own data distribution (after arXiv 2606.06154).

The anchor moves by the clients' movements, averaged in product space:
dW_anchor <- T_r( dW_anchor + eta sum_i w_i (dW_i - dW_i^start) ). What a client learned beyond the anchor, its
deviation D_i = dW_i - dW_anchor, is remembered, and a start is the anchor plus attended deviations
(:mod:`models.synthesizer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.adapter import Adapter, combine, subtract
from models.signature import Signature, Standardizer
from models.synthesizer import FixedKernel, synthesize
from protocol.config import RunConfig
from protocol.signature_messages import ClientCard
from strategies.method import ClientUpdate, example_weights


@dataclass(frozen=True)
class Remembered:
    """What the server keeps of a client that trained."""

    deviation: Adapter
    description: Tensor
    num_examples: int


@dataclass(frozen=True)
class HyperLoraState:
    """Everything that HyperLoRA's server learned.

    Attributes:
        anchor: the global adapter of this round.
        memory: client-id -> the client's last deviation.
        standardizer: scale of the descriptions, fitted to all clients known; None before the first is.
    """

    anchor: Adapter
    memory: Mapping[str, Remembered]
    standardizer: Standardizer | None


@dataclass(frozen=True)
class HyperLoRA:
    """Settings of the method: the synthesizer, and the step of the anchor along the averaged movements."""

    synthesizer: FixedKernel
    server_step: float = 1.0

    def init(self, initial: Adapter) -> HyperLoraState:
        """Start from the fresh adapter with an empty memory."""
        return HyperLoraState(initial, {}, None)

    def register(self, state: HyperLoraState, cards: Mapping[str, ClientCard]) -> HyperLoraState:
        """Fit the scale of the descriptions to the clients known."""
        described = torch.stack([describe(cards[name].signature) for name in sorted(cards)])
        return replace(state, standardizer=Standardizer.fit(described))

    def start(self, state: HyperLoraState, card: ClientCard) -> Adapter:
        """Return the anchor plus the attended deviations, cut to the anchor's rank."""
        if not state.memory or state.standardizer is None:
            return state.anchor
        names = sorted(state.memory)
        entries = [state.memory[name] for name in names]
        weights = self.synthesizer.weights(
            state.standardizer(describe(card.signature)),
            state.standardizer(torch.stack([entry.description for entry in entries])),
            torch.tensor([float(entry.num_examples) for entry in entries]),
            torch.tensor([name == card.client_id for name in names]),
        )
        deviations = [entry.deviation for entry in entries]
        strength = self.synthesizer.strength
        return synthesize(state.anchor, deviations, weights, strength=strength, rank=state.anchor.rank)

    def aggregate(self, state: HyperLoraState, updates: Sequence[ClientUpdate]) -> HyperLoraState:
        """Move the anchor, then remember each client's deviation from it."""
        anchor = move_anchor(state.anchor, updates, self.server_step)
        remembered = {
            one.card.client_id: Remembered(
                subtract(one.end, anchor), describe(one.card.signature), one.metrics.num_examples
            )
            for one in updates
        }
        return replace(state, anchor=anchor, memory={**state.memory, **remembered})

    def anchor(self, state: HyperLoraState) -> Adapter:
        """Return the anchor."""
        return state.anchor


def move_anchor(anchor: Adapter, updates: Sequence[ClientUpdate], step: float) -> Adapter:
    """Return T_r( dW_anchor + step sum_i w_i (dW_i - dW_i^start) ) in the anchor's gauge."""
    adapters, weights = [anchor], [1.0]
    for update, weight in zip(updates, example_weights(updates), strict=True):
        adapters += [update.end, update.start]
        weights += [step * weight, -step * weight]
    return combine(adapters, weights).truncated(anchor.rank).aligned(anchor)


def describe(signature: Signature) -> Tensor:
    """Return the part of a signature in which clients are compared: the mean of the features, shape (d,)."""
    return signature.feature_mean


def build(config: RunConfig) -> HyperLoRA:
    """Return the method with the settings under ``hyperlora``."""
    own = config.hyperlora
    return HyperLoRA(FixedKernel(own.temperature, own.self_logit, own.strength), server_step=own.server_step)
