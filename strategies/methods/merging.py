"""What methods share that merge products into the frozen weights: their state, and all but the aggregation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter, combine
from models.lowrank.factors import Factors, padded, truncate
from strategies.methods.base.server import BaseMethod

NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class MergedState:
    """The adapter that clients train, what was merged so far (its head is zero), and the rounds made."""

    adapter: Adapter
    base: Adapter | None
    rounds: int

    def whole(self) -> Adapter:
        """Return base plus adapter."""
        return self.adapter if self.base is None else combine([self.adapter, self.base], [1.0, 1.0])


class Merging(BaseMethod):
    """A method whose clients train one common adapter over a base product that the server keeps adding to."""

    state_classes = (MergedState, Adapter, Factors)

    def init(self, initial: Adapter) -> MergedState:
        """Start from the fresh adapter with nothing merged."""
        return MergedState(initial, None, 0)

    def start(self, state: MergedState, card: ClientCard) -> Adapter:
        """Send everybody the same adapter."""
        return state.adapter

    def plan(self, state: MergedState, card: ClientCard) -> LocalPlan:
        """Have the merged product added to the frozen weights."""
        return LocalPlan(base=state.base)

    def anchor(self, state: MergedState) -> Adapter:
        """Return the adapter plus what was merged."""
        return state.whole()


def without_head(adapter: Adapter) -> Adapter:
    """Return the products alone."""
    return Adapter(adapter.low_rank, torch.zeros_like(adapter.head))


def merged(base: Adapter | None, more: Adapter) -> Adapter:
    """Return base + more with no more rank than it needs."""
    total = more if base is None else combine([base, more], [1.0, 1.0])
    cuts = {kind: _compact(factors) for kind, factors in total.low_rank.items()}
    rank = max(cut.rank for cut in cuts.values())
    return Adapter({kind: padded(cut, rank) for kind, cut in cuts.items()}, total.head)


def _compact(factors: Factors) -> Factors:
    """Return the same product without directions whose singular value is negligible in every block."""
    full = min(factors.B.shape[-2], factors.A.shape[-1])
    cut = truncate(factors, min(full, factors.rank))
    size = cut.singular_values.flatten(0, -2)
    needed = int((size > NEGLIGIBLE * size[:, :1]).sum(dim=1).max())
    needed = max(needed, 1)
    return Factors(B=cut.kept.B[..., :needed].contiguous(), A=cut.kept.A[..., :needed, :].contiguous())
