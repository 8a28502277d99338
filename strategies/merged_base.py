"""The state of methods that merge products into the frozen weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.adapter import Adapter, combine
from models.low_rank import Factors, truncate

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


def without_head(adapter: Adapter) -> Adapter:
    """Return the products alone."""
    return Adapter(adapter.low_rank, torch.zeros_like(adapter.head))


def merged(base: Adapter | None, more: Adapter) -> Adapter:
    """Return base + more with no more rank than it needs."""
    total = more if base is None else combine([base, more], [1.0, 1.0])
    cuts = {kind: _compact(one) for kind, one in total.low_rank.items()}
    rank = max(one.rank for one in cuts.values())
    return Adapter({kind: _padded(one, rank) for kind, one in cuts.items()}, total.head)


def _compact(factors: Factors) -> Factors:
    """Return the same product without directions whose singular value is negligible in every block."""
    full = min(factors.B.shape[-2], factors.A.shape[-1])
    cut = truncate(factors, min(full, factors.rank))
    size = cut.singular_values.flatten(0, -2)
    needed = int((size > NEGLIGIBLE * size[:, :1]).sum(dim=1).max())
    needed = max(needed, 1)
    return Factors(B=cut.kept.B[..., :needed].contiguous(), A=cut.kept.A[..., :needed, :].contiguous())


def _padded(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    pad = torch.nn.functional.pad
    return Factors(B=pad(factors.B, (0, missing)), A=pad(factors.A, (0, 0, 0, missing)))
