"""FedEx-LoRA: factors are averaged, what that leaves out is added to the frozen weights (arXiv 2410.09432, eq. 10-12).

A = sum_i w_i A_i, B = sum_i w_i B_i, W <- W + sum_i w_i B_i A_i - B A, so that W + B A is the exact average.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperlora.config.schema import RunConfig
from models.adapters.adapter import combine
from strategies.methods.base.server import ClientUpdate, example_weights
from strategies.methods.fedit import average_factors
from strategies.methods.merging import MergedState, Merging, merged, without_head


class FedExLora(Merging):
    """State: the averaged factors and the residuals added so far."""

    def aggregate(self, state: MergedState, updates: Sequence[ClientUpdate]) -> MergedState:
        """Average the factors and add the residual of their product to what was added before."""
        ends, weights = [update.end for update in updates], example_weights(updates)
        average = average_factors(ends, weights)
        residual = combine([*ends, average], [*weights, -1.0])
        return MergedState(average, merged(state.base, without_head(residual)), state.rounds + 1)


def build(config: RunConfig) -> FedExLora:
    """Return the method; it has no settings."""
    return FedExLora()
