"""HetLoRA: clients of different ranks, zero-padded and weighted by the norm of their products (EMNLP 2024, eq. 3-5).

A = sum_i p_i pad(A_i), B = sum_i p_i pad(B_i) with p_i = ||B_i A_i||_F / sum_j ||B_j A_j||_F over all modules; client i
is sent the first r_i columns of B and rows of A. The paper's pruning of a client's own rank is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter, resized
from models.lowrank.factors import norm
from strategies.methods.base.server import ClientUpdate, example_weights
from strategies.methods.fedit import FedIT, average_factors


class HetLora(FedIT):
    """State: the averaged adapter at the highest rank."""

    def start(self, state: Adapter, card: ClientCard) -> Adapter:
        """Send the client the first of its rank's columns and rows."""
        return resized(state, card.rank or state.rank)

    def aggregate(self, state: Adapter, updates: Sequence[ClientUpdate]) -> Adapter:
        """Average the padded factors by the norms of their products, the heads by numbers of samples."""
        padded = [resized(update.end, state.rank) for update in updates]
        sizes = [whole_norm(one) for one in padded]
        total = sum(sizes)
        weights = [size / total for size in sizes] if total > 0 else example_weights(updates)
        heads = average_factors(padded, example_weights(updates)).head
        return Adapter(average_factors(padded, weights).low_rank, heads)


def whole_norm(adapter: Adapter) -> float:
    """Return the Frobenius norm of all modules' products together."""
    return float(torch.stack([norm(factors).square().sum() for factors in adapter.low_rank.values()]).sum().sqrt())


def build(config: RunConfig) -> HetLora:
    """Return the method; it has no settings."""
    return HetLora()
