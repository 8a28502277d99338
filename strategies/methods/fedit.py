"""FedIT: lora_A and lora_B are averaged apart (Zhang et al. 2023, arXiv 2305.05644, algorithm 1).

A = sum_i w_i A_i, B = sum_i w_i B_i. The product B A differs from the average of the products by the covariance of
the factors, sum_i w_i (B_i - B)(A_i - A).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hyperlora.config.schema import RunConfig
from models.adapters.adapter import Adapter
from strategies.methods.base.server import ClientUpdate, SharedAdapterMethod, example_weights


class FedIT(SharedAdapterMethod):
    """State: the averaged adapter, which every client starts from."""

    def aggregate(self, state: Adapter, updates: Sequence[ClientUpdate]) -> Adapter:
        """Average factors and heads entry by entry."""
        return average_factors([update.end for update in updates], example_weights(updates))


def average_factors(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Return the adapter with A = sum_i w_i A_i, B = sum_i w_i B_i and the averaged head."""
    names = adapters[0].tensors()
    return Adapter.from_tensors(
        {
            name: torch.stack([w * adapter.tensors()[name] for adapter, w in zip(adapters, weights, strict=True)]).sum(
                dim=0
            )
            for name in names
        }
    )


def build(config: RunConfig) -> FedIT:
    """Return the method; it has no settings."""
    return FedIT()
