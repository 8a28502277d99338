"""A sum of products whose blocks are owned by Ray actors, on this machine or on other nodes of its cluster.

Products of different modules have nothing to do with each other, so the blocks of a kind are dealt out to actors that
each keep a :class:`~models.lowrank.product_sum.ProductSum` of theirs; r (m + n) numbers a module come back. The result
is that of one process up to rounding. The caller's factors stay referenced until the sum is dropped: an actor that dies
is made anew and given its terms again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray

from models.lowrank.factors import Factors
from models.lowrank.product_sum import ProductSum

log = logging.getLogger(__name__)
IN_FLIGHT = 4
"""Terms that are on their way to one actor at the same time."""
MOST_RESTARTS = 3


class Shard:
    """What an actor holds: by name the sum of its blocks."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._sums: dict[str, ProductSum] = {}

    def add(self, name: str, B: NDArray[Any], A: NDArray[Any], weight: float) -> None:
        """Add ``weight`` times the product of B (blocks, m, r) and A (blocks, r, n), those of this shard's blocks."""
        factors = Factors(torch.from_numpy(B.copy()), torch.from_numpy(A.copy()))  # Ray's arrays are read-only
        self._sums.setdefault(name, ProductSum()).add(factors, weight)

    def truncated(self, name: str, cuts: Sequence[int]) -> Factors:
        """Return the best approximation of these blocks by rank ``max(cuts)``."""
        return self._sums[name].truncated(*cuts)


@dataclass
class Owner:
    """One actor, the terms that it was given, and those that it may not have taken in yet."""

    actor: Any
    terms: list[tuple[str, Factors, float]] = field(default_factory=list)
    sent: deque[Any] = field(default_factory=deque)


class ShardPool:
    """``count`` actors in the Ray cluster that this process has joined; they end when the pool is dropped."""

    def __init__(self, count: int) -> None:
        import ray

        self._ray = ray
        self._make = ray.remote(num_cpus=0, scheduling_strategy="SPREAD", max_restarts=0)(Shard).remote
        self.owners = [Owner(self._make()) for _ in range(count)]

    def add(self, owner: Owner, name: str, factors: Factors, weight: float) -> None:
        """Have an actor add a term; waits where it has too many before it.

        The numbers cross as arrays: a tensor that is part of another one would take all of that with it.
        """
        owner.terms.append((name, factors, weight))
        while len(owner.sent) >= IN_FLIGHT:
            self._ray.wait([owner.sent.popleft()])
        wide = factors.to(factors.wide_dtype)
        owner.sent.append(owner.actor.add.remote(name, wide.B.numpy(), wide.A.numpy(), weight))

    def truncated(self, owners: Sequence[Owner], name: str, cuts: Sequence[int]) -> list[Factors]:
        """Return the truncated blocks of each of ``owners``; one that died begins anew."""
        asked = [owner.actor.truncated.remote(name, cuts) for owner in owners]
        return [self._answer(owner, one, name, cuts, MOST_RESTARTS) for owner, one in zip(owners, asked, strict=True)]

    def _answer(self, owner: Owner, asked: Any, name: str, cuts: Sequence[int], restarts: int) -> Factors:
        try:
            self._ray.get(list(owner.sent))
            answer: Factors = self._ray.get(asked)
        except self._ray.exceptions.RayActorError:
            if not restarts:
                raise
            log.warning("a process that aggregates died; another one is given its %d terms", len(owner.terms))
            self._begin_anew(owner)
            return self._answer(owner, owner.actor.truncated.remote(name, cuts), name, cuts, restarts - 1)
        return answer

    def _begin_anew(self, owner: Owner) -> None:
        terms, owner.terms = owner.terms, []
        owner.actor, owner.sent = self._make(), deque()
        for name, factors, weight in terms:
            self.add(owner, name, factors, weight)


class ShardedProductSum:
    """The same as a :class:`~models.lowrank.product_sum.ProductSum`, its blocks in the actors of a pool.

    Args:
        pool: the actors, which other sums may share.
        name: of this sum among them.
    """

    def __init__(self, pool: ShardPool, name: str) -> None:
        self._pool, self._name = pool, name
        self.shape: tuple[int, ...] | None = None

    def add(self, factors: Factors, weight: float = 1.0) -> None:
        """Add ``weight`` times the product of ``factors``, B (blocks, m, r) and A (blocks, r, n).

        Raises:
            ValueError: another m, n or number of blocks than those of the first.
        """
        if self.shape not in (None, factors.shape):
            raise ValueError(f"expected (..., m, n) = {self.shape} as of the first factors, got {factors.shape}")
        self.shape = factors.shape
        for owner, place in self._places():
            self._pool.add(owner, self._name, Factors(factors.B[place], factors.A[place]), weight)

    def truncated(self, *cuts: int) -> Factors:
        """Return the best approximation by rank ``max(cuts)``; raises ValueError where nothing was added."""
        if self.shape is None:
            raise ValueError("expected at least one stack of factors in the sum, got none")
        parts = self._pool.truncated([owner for owner, _ in self._places()], self._name, cuts)
        return Factors(torch.cat([one.B for one in parts]), torch.cat([one.A for one in parts]))

    def _places(self) -> list[tuple[Owner, slice]]:
        """Return which blocks each actor owns; actors beyond the number of blocks own none."""
        blocks, count = (self.shape or (0,))[0], len(self._pool.owners)
        edges = [blocks * place // count for place in range(count + 1)]
        spans = [slice(low, high) for low, high in pairwise(edges)]
        return [(owner, span) for owner, span in zip(self._pool.owners, spans, strict=True) if span.stop > span.start]
