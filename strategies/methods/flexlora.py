"""FlexLoRA: the products are averaged and cut back to rank r by an SVD (Bai et al. 2024, arXiv 2402.11505, eq. 3-5).

dW = T_r( sum_i w_i B_i A_i ), computed from the factors without forming an m x n matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hyperlora.config.schema import RunConfig
from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import sum_for, taker_for
from strategies.methods.base.server import ClientUpdate, SharedAdapterMethod, example_weights


class FlexLoRA(SharedAdapterMethod):
    """State: the averaged adapter, which every client starts from."""

    def aggregate(self, state: Adapter, updates: Sequence[ClientUpdate]) -> Adapter:
        """Average in product space, truncate, and keep the gauge of the last round."""
        return averaged(updates, state)

    def taker(self, state: Adapter, clients: int) -> Callable[[Adapter], None]:
        """Return what deals the adapters of a large round out as they arrive."""
        return taker_for(state, clients)


def averaged(updates: Sequence[ClientUpdate], before: Adapter) -> Adapter:
    """Return T_r( sum_i w_i B_i A_i ) with the averaged head, in the gauge of ``before``."""
    total = sum_for(before, len(updates))
    for update, weight in zip(updates, example_weights(updates), strict=True):
        total.add(update.end, weight)
    return total.truncated(before.rank).aligned(before)


def build(config: RunConfig) -> FlexLoRA:
    """Return the method; it has no settings."""
    return FlexLoRA()
