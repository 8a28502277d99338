"""The weighted sum of the adapters of a round: in this process or, where it is large, in actors of a Ray cluster."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from models.adapters.adapter import HEAD, Adapter, Weight, part_of
from models.lowrank.factors import Factors
from models.lowrank.product_sum import ProductSum
from models.lowrank.shards import ShardedProductSum, ShardPool

MANY_NUMBERS = 2**29
"""Numbers of all clients of a round together from which a sum is dealt out: some twenty seconds of one core."""
LEAST_CPUS, MOST_SHARDS = 4, 32
"""What crosses to the actors takes half as long as one process's sum: on two hyper-threads of a core nothing is gained
(benchmarks/perf/sharding.py)."""


_pools: dict[str, ShardPool] = {}
"""The actors of this process, by the Ray session that they live in: one at most."""
log = logging.getLogger(__name__)


class SumOfProducts(Protocol):
    """A sum of the products of one kind."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape (..., m, n) of the products; None before the first."""

    def add(self, factors: Factors, weight: float = 1.0) -> None:
        """Add ``weight`` times the product of ``factors``."""

    def truncated(self, *cuts: int) -> Factors:
        """Return the best approximation by rank ``max(cuts)``."""


class AdapterSum:
    """sum_i w_i adapter_i: the products as :class:`~models.lowrank.product_sum.ProductSum`, heads densely in float64.

    An adapter may be dropped once it was added; beyond a limit the factors lie on disk. The order moves the result by
    rounding only.

    Args:
        make: returns the empty sum of a kind.
    """

    def __init__(self, make: Callable[[str], SumOfProducts] = lambda kind: ProductSum()) -> None:
        self._make = make
        self._products: dict[str, SumOfProducts] = {}
        self._head: Tensor | None = None
        self._head_dtype = torch.float32

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterSum:
        """Return the sum of one."""
        total = cls()
        total.add(adapter)
        return total

    def add(self, adapter: Adapter, weight: Weight = 1.0) -> None:
        """Add ``weight`` times ``adapter``, of any rank.

        Raises:
            ValueError: its shapes are not those of the first.
        """
        for kind, factors in adapter.low_rank.items():
            if kind not in self._products:
                self._products[kind] = self._make(kind)
            self._products[kind].add(factors, part_of(weight, kind))
        head = part_of(weight, HEAD) * adapter.head.double()
        self._head, self._head_dtype = head if self._head is None else self._head + head, adapter.head.dtype

    def truncated(self, rank: int) -> Adapter:
        """Return the best adapter of rank ``rank`` in every module (Eckart-Young).

        Raises:
            ValueError: nothing was added, or the rank is too large.
        """
        return Adapter({kind: total.truncated(rank) for kind, total in self._products.items()}, self.head())

    def split(self, rank: int, residual_rank: int) -> tuple[Adapter, Adapter]:
        """Return the best adapter of rank ``rank``, and the best of rank ``residual_rank`` of what it leaves out.

        The head is kept whole, its residual is zero. Where a module has fewer than ``rank + residual_rank`` rows or
        columns, the residual has so much less rank.
        """
        kept, residual = {}, {}
        for kind, total in self._products.items():
            most = min((total.shape or (0, 0))[-2:])
            first, both = min(rank, most), min(rank + residual_rank, most)
            best = total.truncated(first, both)
            kept[kind] = Factors(best.B[..., :first].contiguous(), best.A[..., :first, :].contiguous())
            residual[kind] = Factors(best.B[..., first:].contiguous(), best.A[..., first:, :].contiguous())
        return Adapter(kept, self.head()), Adapter(residual, torch.zeros_like(self.head()))

    def head(self) -> Tensor:
        """Return the sum of the heads.

        Raises:
            ValueError: nothing was added.
        """
        if self._head is None:
            raise ValueError("expected at least one adapter in the sum, got none")
        return self._head.to(self._head_dtype)


def sum_for(adapter: Adapter, clients: int) -> AdapterSum:
    """Return the empty sum for so many clients' adapters of the shape of ``adapter``.

    It is dealt out to Ray actors where the clients bring more than ``MANY_NUMBERS`` numbers and this process has joined
    a cluster of ``LEAST_CPUS`` or more, as that of a simulation may be; the result is the same up to rounding.
    """
    pool = _pool_for(adapter, clients)
    return AdapterSum() if pool is None else AdapterSum(lambda kind: ShardedProductSum(pool))


def taker_for(adapter: Adapter, clients: int) -> Callable[[Adapter], None]:
    """Return a callback that takes each adapter of a round as it arrives, before its weight in the sum is known.

    If the sum over so many clients is distributed to Ray actors (:func:`sum_for`), the callback sends the adapter to
    them at once, and only its weight follows later; otherwise the callback does nothing.
    """
    for earlier in _pools.values():
        earlier.drop_parked()
    pools = [_pool_for(adapter, clients)]

    def take(arrived: Adapter) -> None:
        for pool in filter(None, pools):
            try:
                for factors in arrived.low_rank.values():
                    pool.park(factors)
            except Exception as error:  # what is not parked is sent with its weight
                log.warning("replies are not dealt out as they arrive: %s", error)
                pools.clear()

    return take


def _pool_for(adapter: Adapter, clients: int) -> ShardPool | None:
    """Return the actors that a round of so many clients is dealt out to, the same ones in every round; or None."""
    numbers = clients * sum(one.B.numel() + one.A.numel() for one in adapter.low_rank.values())
    ray = sys.modules.get("ray")  # whoever joined a cluster has imported it
    if numbers < MANY_NUMBERS or ray is None or not ray.is_initialized():
        return None
    session = ray.get_runtime_context().get_session_name()
    if session not in _pools:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        if cpus < LEAST_CPUS:
            return None
        _pools.clear()
        _pools[session] = ShardPool(min(cpus, MOST_SHARDS))
    return _pools[session]
