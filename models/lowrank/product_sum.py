"""A weighted sum of clients' factors that is folded in one reply at a time, in bounded memory, and then truncated.

The sum is kept exactly: as the factors themselves, float32 or wider, in chunks of several clients. Chunks beyond
``ram_limit`` lie in a temporary file without a name, gone with the process, and are mapped one at a time. That is
cheaper than an m x n matrix: adding a client of rank r to the matrix costs 2 m n r operations, multiplying its factors
by some 16 columns about five times costs 2 r (m + n) per column; see docs/performance.md.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from hyperlora.storage.tensor_store import StoredTensors, TensorStore
from models.lowrank.factor_stack import FactorStack
from models.lowrank.factors import Factors
from models.lowrank.truncation import best_rank

CHUNK_BYTES = 8 * 2**20
RAM_LIMIT = 16 * 2**20


class ProductSum:
    """X = sum_i w_i B_i A_i of factors of equal m, n and batch dimensions, on the CPU; ranks may differ.

    Args:
        ram_limit: bytes of closed chunks that are kept in RAM; the others lie on disk.
        chunk_bytes: bytes that are multiplied at a time; a client's own factors may be larger.
        directory: where the temporary file is made; None takes the system's.
    """

    def __init__(
        self, *, ram_limit: int = RAM_LIMIT, chunk_bytes: int = CHUNK_BYTES, directory: Path | None = None
    ) -> None:
        self._store, self._chunk_bytes = TensorStore(ram_limit=ram_limit, directory=directory), chunk_bytes
        self._open: Factors | None = None
        self._filled = 0
        self._dtype = torch.float32
        self._chunks: list[StoredTensors] = []
        self.shape: tuple[int, ...] | None = None
        self.rank = 0

    @property
    def ram_bytes(self) -> int:
        """The bytes of closed chunks in RAM."""
        return self._store.ram_bytes

    def add(self, factors: Factors, weight: float = 1.0) -> None:
        """Add ``weight`` times the product of ``factors``, which may be dropped after.

        Raises:
            ValueError: another m, n or batch dimensions than those of the first.
        """
        if self.shape not in (None, factors.shape):
            raise ValueError(f"expected (..., m, n) = {self.shape} as of the first factors, got {factors.shape}")
        self.shape, dtype = factors.shape, factors.wide_dtype
        self._dtype = torch.promote_types(self._dtype, dtype)
        target, place = self._room_for(factors.rank, dtype), slice(self._filled, self._filled + factors.rank)
        target.B[..., place] = factors.B
        torch.mul(factors.A.to(dtype), weight, out=target.A[..., place, :])
        self._filled += factors.rank
        self.rank += factors.rank

    def truncated(self, *cuts: int) -> Factors:
        """Return the best approximation by rank ``max(cuts)``, see :func:`models.lowrank.truncation.best_rank`.

        Raises:
            ValueError: nothing was added, or as ``best_rank``.
        """
        return best_rank(self.stack(), *cuts)

    def stack(self) -> FactorStack:
        """Return the sum as a matrix that can be multiplied; more may be added after.

        Raises:
            ValueError: nothing was added.
        """
        if self.shape is None:
            raise ValueError("expected at least one stack of factors in the sum, got none")
        self._close_chunk()
        *batch, m, n = self.shape
        stored = tuple(self._chunks)
        return FactorStack(
            lambda: (Factors(**one.tensors()) for one in stored), m, n, tuple(batch), self.rank, self._dtype
        )

    def _room_for(self, rank: int, dtype: torch.dtype) -> Factors:
        """Return the open chunk, or a fresh one where that has too little room."""
        if self._open is None or self._open.rank < self._filled + rank or self._open.B.dtype != dtype:
            self._close_chunk()
            *batch, m, n = self.shape or ()
            columns = max(rank, self._chunk_bytes // (math.prod(batch) * (m + n) * dtype.itemsize))
            self._open = Factors(
                torch.empty(*batch, m, columns, dtype=dtype), torch.empty(*batch, columns, n, dtype=dtype)
            )
        return self._open

    def _close_chunk(self) -> None:
        if self._open is not None and self._filled:
            filled = slice(0, self._filled)
            chunk = Factors(self._open.B[..., filled].contiguous(), self._open.A[..., filled, :].contiguous())
            self._chunks.append(self._store.put({"B": chunk.B, "A": chunk.A}))
        self._open, self._filled = None, 0
