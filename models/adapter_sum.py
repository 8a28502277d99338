"""A weighted sum of many adapters in product space, folded in one by one in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from models.adapter import HEAD, Adapter, Weight, part_of
from models.low_rank import Factors
from models.product_sum import ProductSum


class AdapterSum:
    """sum_i w_i adapter_i: the products as :class:`models.product_sum.ProductSum`, the heads densely in float64.

    An adapter may be dropped once it was added; beyond a limit the factors lie on disk. The order moves the result by
    rounding only.
    """

    def __init__(self) -> None:
        self._products: dict[str, ProductSum] = {}
        self._head: Tensor | None = None
        self._head_dtype = torch.float32

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterSum:
        """Return the sum of one."""
        total = cls()
        total.add(adapter)
        return total

    def add(self, adapter: Adapter, weight: Weight = 1.0) -> None:
        """Add ``weight`` times ``adapter``, of any rank; a weight is one number, or one for each part.

        Raises:
            ValueError: its shapes are not those of the first.
        """
        for kind, factors in adapter.low_rank.items():
            self._products.setdefault(kind, ProductSum()).add(factors, part_of(weight, kind))
        head = part_of(weight, HEAD) * adapter.head.double()
        self._head, self._head_dtype = head if self._head is None else self._head + head, adapter.head.dtype

    def truncated(self, rank: int) -> Adapter:
        """Return the best adapter of rank ``rank`` in every module (Eckart-Young).

        Raises:
            ValueError: nothing was added, or the rank is too large.
        """
        return Adapter({kind: total.truncated(rank) for kind, total in self._products.items()}, self.head())

    def split(self, rank: int, rest_rank: int) -> tuple[Adapter, Adapter]:
        """Return the best adapter of rank ``rank`` and the best of rank ``rest_rank`` of what it leaves out.

        The head is kept whole, its rest is zero. Where a module has fewer than ``rank + rest_rank`` rows or columns,
        the rest has so much less rank.
        """
        kept, rest = {}, {}
        for kind, total in self._products.items():
            stack = total.stack()
            most = min(stack.m, stack.n)
            first, both = min(rank, most), min(rank + rest_rank, most)
            best = total.truncated(first, both)
            kept[kind] = Factors(best.B[..., :first].contiguous(), best.A[..., :first, :].contiguous())
            rest[kind] = Factors(best.B[..., first:].contiguous(), best.A[..., first:, :].contiguous())
        return Adapter(kept, self.head()), Adapter(rest, torch.zeros_like(self.head()))

    def head(self) -> Tensor:
        """Return the sum of the heads.

        Raises:
            ValueError: nothing was added.
        """
        if self._head is None:
            raise ValueError("expected at least one adapter in the sum, got none")
        return self._head.to(self._head_dtype)
