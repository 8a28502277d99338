"""RoLoRA: B and A are trained and averaged in turn, the other one fixed (arXiv 2409.02346, algorithm 1).

In odd rounds dW = (sum_i w_i B_i) A, in even rounds dW = B (sum_i w_i A_i): both are the exact average of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import HEAD, Adapter
from models.lowrank.factors import Factors
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights
from strategies.methods.fedit import average_factors


@dataclass(frozen=True)
class RoLoraState:
    """The averaged adapter and the number of rounds it has seen."""

    adapter: Adapter
    rounds: int


class RoLora(BaseMethod):
    """Trains B first, since the gradient by A is zero while B is."""

    state_classes = (RoLoraState, Adapter, Factors)

    def init(self, initial: Adapter) -> RoLoraState:
        """Start from the fresh adapter."""
        return RoLoraState(initial, 0)

    def start(self, state: RoLoraState, card: ClientCard) -> Adapter:
        """Send everybody the same average."""
        return state.adapter

    def plan(self, state: RoLoraState, card: ClientCard) -> LocalPlan:
        """Have B trained in odd rounds, A in even ones, and only that one sent back."""
        trained = "A" if state.rounds % 2 else "B"
        return LocalPlan(trains=trained, up=(trained, HEAD))

    def aggregate(self, state: RoLoraState, updates: Sequence[ClientUpdate]) -> RoLoraState:
        """Average entry by entry; what was fixed is the same in all."""
        ends = [update.end for update in updates]
        return RoLoraState(average_factors(ends, example_weights(updates)), state.rounds + 1)

    def anchor(self, state: RoLoraState) -> Adapter:
        """Return the average."""
        return state.adapter


def build(config: RunConfig) -> RoLora:
    """Return the method; it has no settings."""
    return RoLora()
