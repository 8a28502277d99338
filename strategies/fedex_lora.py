"""FedEx-LoRA: factors are averaged, what that leaves out is added to the frozen weights (arXiv 2410.09432, eq. 10-12).

A = sum_i w_i A_i, B = sum_i w_i B_i, W <- W + sum_i w_i B_i A_i - B A, so that W + B A is the exact average.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.adapter import Adapter, combine
from models.low_rank import Factors
from protocol.config import RunConfig
from protocol.local_plan import LocalPlan
from protocol.signature_messages import ClientCard
from strategies.fedit import average_factors
from strategies.merged_base import MergedState, merged, without_head
from strategies.method import ClientUpdate, Plain, example_weights


class FedExLora(Plain):
    """State: the averaged factors and the residuals added so far."""

    state_classes = (MergedState, Adapter, Factors)

    def init(self, initial: Adapter) -> MergedState:
        """Start from the fresh adapter with no residual."""
        return MergedState(initial, None, 0)

    def start(self, state: MergedState, card: ClientCard) -> Adapter:
        """Send everybody the same averaged factors."""
        return state.adapter

    def plan(self, state: MergedState, card: ClientCard) -> LocalPlan:
        """Have the residuals added to the frozen weights."""
        return LocalPlan(base=state.base)

    def aggregate(self, state: MergedState, updates: Sequence[ClientUpdate]) -> MergedState:
        """Average the factors and add the residual of their product to what was added before."""
        ends, weights = [update.end for update in updates], example_weights(updates)
        average = average_factors(ends, weights)
        residual = combine([*ends, average], [*weights, -1.0])
        return MergedState(average, merged(state.base, without_head(residual)), state.rounds + 1)

    def anchor(self, state: MergedState) -> Adapter:
        """Return the averaged factors plus the residuals."""
        return state.whole()


def build(config: RunConfig) -> FedExLora:
    """Return the method; it has no settings."""
    return FedExLora()
