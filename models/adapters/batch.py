"""Many adapters of the same shapes as one value, so that one tensor operation serves them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors


@dataclass(frozen=True)
class AdapterBatch:
    """N adapters with a leading batch dimension.

    Attributes:
        low_rank: module kind -> factors, ``B`` (N, L, m, r) and ``A`` (N, L, r, n) for the L blocks of the kind.
        head: (N, classes, width + 1), the weights with the bias as their last column.
    """

    low_rank: Mapping[str, Factors]
    head: Tensor

    @classmethod
    def stack(cls, adapters: Sequence[Adapter]) -> AdapterBatch:
        """Return the batch of N adapters, which must have the same shapes and rank."""
        low_rank = {
            kind: Factors(
                B=torch.stack([adapter.low_rank[kind].B for adapter in adapters]),
                A=torch.stack([adapter.low_rank[kind].A for adapter in adapters]),
            )
            for kind in adapters[0].low_rank
        }
        return cls(low_rank, torch.stack([adapter.head for adapter in adapters]))

    def __len__(self) -> int:
        """Return N."""
        return len(self.head)

    def __getitem__(self, index: int) -> Adapter:
        """Return one adapter of the batch, a view of its tensors."""
        low_rank = {kind: Factors(B=factors.B[index], A=factors.A[index]) for kind, factors in self.low_rank.items()}
        return Adapter(low_rank, self.head[index])

    def __iter__(self) -> Iterator[Adapter]:
        """Go through the adapters in their order."""
        return (self[index] for index in range(len(self)))

    def weighted(self, weights: Tensor) -> AdapterBatch:
        """Return each adapter times its weight (N,), in product space."""
        columns = weights[:, None, None, None]
        low_rank = {kind: Factors(factors.B * columns, factors.A) for kind, factors in self.low_rank.items()}
        return AdapterBatch(low_rank, self.head * weights[:, None, None])
