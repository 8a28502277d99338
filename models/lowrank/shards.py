"""A sum of products whose blocks are owned by Ray actors, on this machine or on other nodes of its cluster.

Products of different modules have nothing to do with each other, so the blocks of a kind are dealt out to actors that
each keep a :class:`~models.lowrank.product_sum.ProductSum` of theirs; r (m + n) numbers a module come back. The
result is that of one process up to rounding. Factors may be sent before it is known what they weigh, or whether they
count: they are parked there. The caller's factors stay referenced until the sum is dropped: an actor that dies is
made anew and given its terms again.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from typing import Any

import torch
from numpy.typing import NDArray

from hyperlora.storage.tensor_store import StoredTensors, TensorStore
from models.lowrank.factors import Factors
from models.lowrank.product_sum import ProductSum

log = logging.getLogger(__name__)
IN_FLIGHT, MOST_EARLY = 4, 32
"""Calls in flight to one actor: from the first number on an ``add`` waits; from the second on a ``park`` is skipped."""
MOST_RESTARTS = 3
PARKED_IN_RAM = 2**26
"""Bytes of what is parked in an actor that stay in RAM; the others lie on its machine's disk."""
NAMES = count()


class Shard:
    """What an actor holds: by name the sum of its blocks, by key those of factors that have no weight yet."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._sums: dict[str, ProductSum] = {}
        self._parked: dict[int, StoredTensors] = {}
        self._store = TensorStore(ram_limit=PARKED_IN_RAM)

    def park(self, key: int, B: NDArray[Any], A: NDArray[Any]) -> None:
        """Keep B (blocks, m, r) and A (blocks, r, n), those of this shard's blocks, until they are added or dropped."""
        if not self._parked:
            self._store = TensorStore(ram_limit=PARKED_IN_RAM)
        tensors = {"B": torch.from_numpy(B.copy()), "A": torch.from_numpy(A.copy())}  # Ray's arrays are read-only
        self._parked[key] = self._store.put(tensors)

    def add(self, name: str, key: int, weight: float) -> None:
        """Add ``weight`` times the product of what was parked under ``key``, and keep it no longer."""
        self._sums.setdefault(name, ProductSum()).add(Factors(**self._parked.pop(key).tensors()), weight)

    def truncated(self, name: str, cuts: Sequence[int]) -> Factors:
        """Return the best approximation of these blocks by rank ``max(cuts)``."""
        return self._sums[name].truncated(*cuts)

    def drop(self, names: Sequence[str], keys: Sequence[int]) -> None:
        """Let go of sums, and of factors that nothing was made of."""
        for name in names:
            self._sums.pop(name, None)
        for key in keys:
            self._parked.pop(key, None)


@dataclass(frozen=True)
class Term:
    """Some blocks of ``factors`` times a weight, a part of the sum ``name``."""

    name: str
    factors: Factors
    blocks: slice
    weight: float


@dataclass
class Owner:
    """One actor, the terms that it was given, what is parked there, and what it may not have taken in yet.

    ``broken`` tells that it did not take something in, or died: it has to begin anew.
    """

    actor: Any
    terms: list[Term] = field(default_factory=list)
    parked: dict[int, int] = field(default_factory=dict)
    sent: deque[Any] = field(default_factory=deque)
    broken: bool = False


class ShardPool:
    """``actors`` actors in the Ray cluster that this process has joined; they end when the pool is dropped."""

    def __init__(self, actors: int) -> None:
        import ray

        self._ray = ray
        self._make = ray.remote(num_cpus=0, scheduling_strategy="SPREAD", max_restarts=0)(Shard).remote
        self.owners = [Owner(self._make()) for _ in range(actors)]
        self._keys = count()
        self._early: dict[int, Factors] = {}

    def park(self, factors: Factors) -> None:
        """Send factors, B (blocks, m, r) and A (blocks, r, n), to the actors that will own their blocks.

        Nobody waits here: an actor that has too much before it is sent its blocks later, with their weight.
        """
        self._early[id(factors)] = factors
        for owner, blocks in self.places(factors.shape[0]):
            self._note_taken(owner)
            if len(owner.sent) < MOST_EARLY:
                owner.parked[id(factors)] = self._send(owner, factors, blocks)

    def drop_parked(self) -> None:
        """Let go of what was parked and never added."""
        for owner in self.owners:
            keys, owner.parked = list(owner.parked.values()), {}
            if keys:
                owner.actor.drop.remote([], keys)
        self._early = {}

    def places(self, blocks: int) -> list[tuple[Owner, slice]]:
        """Return which of so many blocks each actor owns; actors beyond the number of blocks own none."""
        edges = [blocks * place // len(self.owners) for place in range(len(self.owners) + 1)]
        spans = [slice(low, high) for low, high in pairwise(edges)]
        return [(owner, span) for owner, span in zip(self.owners, spans, strict=True) if span.stop > span.start]

    def add(self, term: Term) -> None:
        """Have the owners of the blocks of ``term`` add it; its factors are sent where they are not parked."""
        for owner, blocks in self.places(term.factors.shape[0]):
            self._give(owner, replace(term, blocks=blocks))
        self._early.pop(id(term.factors), None)

    def _give(self, owner: Owner, term: Term) -> None:
        owner.terms.append(term)
        key = owner.parked.pop(id(term.factors), None)
        if key is None:
            self._make_room(owner)
            key = self._send(owner, term.factors, term.blocks)
        owner.sent.append(owner.actor.add.remote(term.name, key, term.weight))

    def _send(self, owner: Owner, factors: Factors, blocks: slice) -> int:
        """Park some blocks in an actor and return their key there.

        The numbers cross as arrays: a tensor that is part of another one would take all of that with it.
        """
        key, wide = next(self._keys), Factors(factors.B[blocks], factors.A[blocks]).to(factors.wide_dtype)
        owner.sent.append(owner.actor.park.remote(key, wide.B.numpy(), wide.A.numpy()))
        return key

    def _make_room(self, owner: Owner) -> None:
        while len(owner.sent) >= IN_FLIGHT:
            self._ray.wait([owner.sent[0]])
            self._note_taken(owner)

    def _note_taken(self, owner: Owner) -> None:
        """Forget what the actor has taken in by now, in order, and note where something failed."""
        while owner.sent and self._ray.wait([owner.sent[0]], timeout=0)[0]:
            try:
                self._ray.get(owner.sent.popleft())
            except self._ray.exceptions.RayError:
                owner.broken = True

    def truncated(self, owners: Sequence[Owner], name: str, cuts: Sequence[int]) -> list[Factors]:
        """Return the truncated blocks of each of ``owners``; one that died begins anew."""
        asked = [owner.actor.truncated.remote(name, cuts) for owner in owners]
        return [self._answer(owner, one, name, cuts, MOST_RESTARTS) for owner, one in zip(owners, asked, strict=True)]

    def _answer(self, owner: Owner, asked: Any, name: str, cuts: Sequence[int], restarts: int) -> Factors:
        try:
            self._ray.get(list(owner.sent))
            answer: Factors = self._ray.get(asked)
            if not owner.broken:
                owner.sent.clear()
                return answer
        except self._ray.exceptions.RayError:
            if not restarts:
                raise
        if not restarts:
            raise RuntimeError("processes that aggregate fail again and again to take in what they are sent")
        log.warning("a process that aggregates failed; another one is given its %d terms", len(owner.terms))
        self._begin_anew(owner)
        return self._answer(owner, owner.actor.truncated.remote(name, cuts), name, cuts, restarts - 1)

    def _begin_anew(self, owner: Owner) -> None:
        terms, owner.terms = owner.terms, []
        owner.actor, owner.sent, owner.parked, owner.broken = self._make(), deque(), {}, False
        for term in terms:
            self._give(owner, term)

    def drop_sum(self, name: str) -> None:
        """Let go of a sum."""
        if not self._ray.is_initialized():
            return
        for owner in self.owners:
            owner.terms = [term for term in owner.terms if term.name != name]
            owner.actor.drop.remote([name], [])


class ShardedProductSum:
    """The same as a :class:`~models.lowrank.product_sum.ProductSum`, its blocks in the actors of a pool.

    Args:
        pool: the actors, which other sums may share.
    """

    def __init__(self, pool: ShardPool) -> None:
        self._pool, self._name = pool, f"sum {next(NAMES)}"
        self.shape: tuple[int, ...] | None = None
        weakref.finalize(self, pool.drop_sum, self._name).atexit = False

    def add(self, factors: Factors, weight: float = 1.0) -> None:
        """Add ``weight`` times the product of ``factors``, B (blocks, m, r) and A (blocks, r, n).

        Raises:
            ValueError: another m, n or number of blocks than those of the first.
        """
        if self.shape not in (None, factors.shape):
            raise ValueError(f"expected (..., m, n) = {self.shape} as of the first factors, got {factors.shape}")
        self.shape = factors.shape
        self._pool.add(Term(self._name, factors, slice(0, factors.shape[0]), weight))

    def truncated(self, *cuts: int) -> Factors:
        """Return the best approximation by rank ``max(cuts)``; raises ValueError where nothing was added."""
        if self.shape is None:
            raise ValueError("expected at least one stack of factors in the sum, got none")
        parts = self._pool.truncated([owner for owner, _ in self._pool.places(self.shape[0])], self._name, cuts)
        return Factors(torch.cat([one.B for one in parts]), torch.cat([one.A for one in parts]))
