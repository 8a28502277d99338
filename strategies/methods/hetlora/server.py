"""HetLoRA: clients of different ranks that prune themselves, weighted by their products' norms (arXiv 2401.06432).

A = sum_i p_i pad(A_i), B = sum_i p_i pad(B_i) with p_i = ||B_i A_i||_F / sum_j ||B_j A_j||_F over all modules
(eq. 3-5); client i is sent the first r_i columns of B and rows of A. r_i begins as the client's entry of
``lora.ranks``. Where local training made the last columns smaller, ||B[:, k:]|| ||A[k:, :]|| with k = floor(gamma r_i),
the client prunes them and its rank is k from then on (section 3.2). That depends on what was sent and what came back
alone, so it is worked out here: the columns still travel in the round in which they are pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter, resized
from models.lowrank.factors import Factors, norm
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights, without
from strategies.methods.fedit import average_factors
from strategies.methods.hetlora.config import HetLoraSettings
from strategies.methods.hetlora.pruning import kept_rank, tail_size


@dataclass(frozen=True)
class HetLoraState:
    """The averaged adapter at the highest rank, and by client-id the ranks of clients that have pruned theirs."""

    adapter: Adapter
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class HetLora(BaseMethod):
    """Settings: ``kept``, the share gamma of its rank that a client keeps when it prunes."""

    kept: float
    state_classes = (HetLoraState, Adapter, Factors)

    def init(self, initial: Adapter) -> HetLoraState:
        """Start from the fresh adapter, nobody pruned."""
        return HetLoraState(initial, {})

    def start(self, state: HetLoraState, card: ClientCard) -> Adapter:
        """Send the client the first of its rank's columns and rows."""
        rank = card.rank or state.adapter.rank
        return resized(state.adapter, min(rank, state.ranks.get(card.client_id, rank)))

    def aggregate(self, state: HetLoraState, updates: Sequence[ClientUpdate]) -> HetLoraState:
        """Average the pruned and padded factors by the norms of their products, the heads by numbers of samples."""
        pruned = [self._pruned(update) for update in updates]
        ends = [resized(one, state.adapter.rank) for one in pruned]
        ranks = {
            update.card.client_id: one.rank
            for update, one in zip(updates, pruned, strict=True)
            if one.rank < update.end.rank
        }
        examples = example_weights(updates)
        average = average_factors(ends, norm_weights(ends, updates) or examples)
        adapter = Adapter(average.low_rank, average_factors(ends, examples).head)
        return HetLoraState(adapter, {**state.ranks, **ranks})

    def forget(self, state: HetLoraState, client_id: str) -> HetLoraState:
        """Drop the rank that the client pruned itself to."""
        return HetLoraState(state.adapter, without(state.ranks, client_id))

    def anchor(self, state: HetLoraState) -> Adapter:
        """Return the average."""
        return state.adapter

    def _pruned(self, update: ClientUpdate) -> Adapter:
        """Return what the client ended with, without its last columns where training made these smaller."""
        kept = kept_rank(update.end.rank, self.kept)
        before, after = (float(tail_size(pairs(one), kept)) for one in (update.start, update.end))
        return resized(update.end, kept) if after < before else update.end


def pairs(adapter: Adapter) -> list[tuple[Tensor, Tensor]]:
    """Return B and A of every kind of modules."""
    return [(factors.B, factors.A) for factors in adapter.low_rank.values()]


def norm_weights(ends: Sequence[Adapter], updates: Sequence[ClientUpdate]) -> list[float]:
    """Return p_i, times the factors of a robust rule; empty where all products are zero."""
    sizes = [update.weight * whole_norm(end) for end, update in zip(ends, updates, strict=True)]
    total = sum(sizes)
    return [size / total for size in sizes] if total > 0 else []


def whole_norm(adapter: Adapter) -> float:
    """Return the Frobenius norm of all modules' products together."""
    return float(torch.stack([norm(factors).square().sum() for factors in adapter.low_rank.values()]).sum().sqrt())


def build(config: RunConfig) -> HetLora:
    """Return the method with the settings under ``hetlora``."""
    return HetLora(config.of(HetLoraSettings).kept)
