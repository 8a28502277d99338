"""A sum of products X = sum_c B_c A_c that is only ever multiplied: chunks of factors, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.lowrank.factors import Factors, concatenate


class LinearMap(Protocol):
    """Matrices X (..., m, n) that can be multiplied from both sides: what block Lanczos needs to know of them."""

    @property
    def m(self) -> int:
        """Rows."""

    @property
    def n(self) -> int:
        """Columns."""

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading dimensions."""

    @property
    def dtype(self) -> torch.dtype:
        """Of every product."""

    def times(self, V: Tensor) -> Tensor:
        """Return X V, (..., m, k), for V (..., n, k)."""

    def transposed_times(self, U: Tensor) -> Tensor:
        """Return X^T U, (..., n, k), for U (..., m, k)."""


@dataclass(frozen=True, eq=False)
class FactorStack:
    """X = sum_c B_c A_c on the CPU, a :class:`LinearMap` that is formed by :meth:`dense` alone.

    Attributes:
        chunks: gives factors of equal m, n and batch dimensions, for one product after the other; half precision is
            widened chunk by chunk.
        m: rows of X.
        n: columns of X.
        batch: the leading dimensions, layers of equal shape.
        rank: the sum of the chunks' ranks.
        dtype: of every product, float32 or float64.
    """

    chunks: Callable[[], Iterable[Factors]]
    m: int
    n: int
    batch: tuple[int, ...]
    rank: int
    dtype: torch.dtype

    @classmethod
    def of(cls, factors: Factors) -> FactorStack:
        """Return one chunk."""
        *batch, m, n = factors.shape
        return cls(lambda: (factors,), m, n, tuple(batch), factors.rank, factors.wide_dtype)

    def transposed(self) -> FactorStack:
        """Return X^T."""
        return FactorStack(
            lambda: (chunk.transposed() for chunk in self.chunks()), self.n, self.m, self.batch, self.rank, self.dtype
        )

    def times(self, V: Tensor) -> Tensor:
        """Return X V, (..., m, k), for V (..., n, k)."""
        total = V.new_zeros(*self.batch, self.m, V.shape[-1])
        for chunk in self.chunks():
            _add_product(total, chunk.B.to(V.dtype), chunk.A.to(V.dtype) @ V)
        return total

    def transposed_times(self, U: Tensor) -> Tensor:
        """Return X^T U, (..., n, k), for U (..., m, k)."""
        total = U.new_zeros(*self.batch, U.shape[-1], self.n)
        for chunk in self.chunks():
            _add_product(total, U.mT @ chunk.B.to(U.dtype), chunk.A.to(U.dtype))
        return total.mT

    def dense(self) -> Tensor:
        """Return X in float64, (..., m, n)."""
        total = torch.zeros(*self.batch, self.m, self.n, dtype=torch.float64)
        for chunk in self.chunks():
            _add_product(total, chunk.B.to(torch.float64), chunk.A.to(torch.float64))
        return total

    def concatenated(self) -> Factors:
        """Return all chunks as one pair of factors of the whole rank."""
        return concatenate(list(self.chunks()))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to ``total`` in place."""
    flat = [one.reshape(-1, *one.shape[-2:]) for one in (total, left, right)]
    flat[0].baddbmm_(flat[1], flat[2])
