"""Who is whose neighbour in a secure sum: a random graph that every party makes for itself of all public keys.

Masks and shares go between neighbours alone. The graph is one of random cycles through all participants, in orders that
follow from a digest of all names and keys: nobody picks the neighbours of another, and a server that wants other ones
needs other keys. Cycles of one order (Harary's graph, as in Bell et al. 2020) would do against clients that drop out by
chance; a server that chooses who drops out cuts such a ring by leaving out some that stand side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hyperlora.secure_sum import keys
from hyperlora.secure_sum.bounds import least_answers, neighbours_needed
from hyperlora.secure_sum.public_keys import PublicKeys, participants_digest


@dataclass(frozen=True)
class Graph:
    """The neighbours of every participant, itself not among them.

    Attributes:
        digest: of the participants, which the graph follows from.
        neighbours: by participant.
    """

    digest: bytes
    neighbours: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, public: Mapping[str, PublicKeys]) -> Graph:
        """Return the graph of a sum.

        Args:
            public: by name the public keys of all participants.
        """
        digest, names = participants_digest(public), sorted(public)
        return cls(digest, _connected(digest, names, neighbours_needed(len(names))))

    def holders(self, name: str) -> list[str]:
        """Return who holds shares of a participant, in the order of the shares: its neighbours and itself."""
        return sorted({name, *self.neighbours[name]})

    def least(self, name: str) -> int:
        """Return how many of :meth:`holders` give what hides a participant."""
        return least_answers(len(self.neighbours[name]) + 1)

    def mask_seed(self, private: bytes, name: str, other: str, public: PublicKeys) -> bytes:
        """Return the seed of the mask between two participants, in this sum and in no other.

        Their names are in it: a key can be written in several ways, so that one who takes another's key as its own,
        differently written, would else have the same masks with everybody, and cancel them.

        Args:
            private: private key for masks of ``name``.
            name: the one.
            other: the other.
            public: keys of the other.
        """
        return keys.agreed_key(private, public.masks, self._purpose("mask", name, other))

    def seal_key(self, private: bytes, name: str, other: str, public: PublicKeys) -> bytes:
        """Return the key of what the two seal for each other, who cannot open it where they are told of other sums."""
        return keys.agreed_key(private, public.seals, self._purpose("seal", name, other))

    def _purpose(self, kind: str, name: str, other: str) -> str:
        return json.dumps([kind, self.digest.hex(), *sorted((name, other))])

    def flaw(self, answered: Collection[str], dropped: Collection[str]) -> str:
        """Return why no sum of who answered may be unmasked, in one sentence; empty where it may.

        Args:
            answered: whose vectors are in the sum; each is one of the participants.
            dropped: who sent shares and no vector.
        """
        present = frozenset(answered)
        for name in [*answered, *dropped]:
            left, least = len(present & {name, *self.neighbours[name]}), self.least(name)
            if left < least:
                return f"{left} of '{name}' and its neighbours are left, and {least} is the least"
        reached = self._reached(present)
        if len(reached) < len(present):
            return f"{len(reached)} of {len(present)} clients have masks with each other and with none of the rest"
        return ""

    def _reached(self, present: frozenset[str]) -> set[str]:
        """Return who of ``present`` one of them reaches through others of them."""
        edge = set(sorted(present)[:1])
        reached = set(edge)
        while edge:
            edge = {other for name in edge for other in self.neighbours[name] & present} - reached
            reached |= edge
        return reached


def _connected(digest: bytes, names: Sequence[str], degree: int) -> dict[str, frozenset[str]]:
    """Return neighbours, at least ``degree`` of each: all others, or those beside it in random cycles."""
    if degree >= len(names) - 1:
        everybody = frozenset(names)
        return {name: everybody - {name} for name in names}
    found: list[set[int]] = [set() for _ in names]
    cycle = 0
    while min(map(len, found)) < degree:
        order = _order(digest, cycle, len(names))
        for one, other in zip(order, [*order[1:], order[0]], strict=True):
            found[one].add(other)
            found[other].add(one)
        cycle += 1
    return {name: frozenset(names[one] for one in beside) for name, beside in zip(names, found, strict=True)}


def _order(digest: bytes, cycle: int, count: int) -> list[int]:
    """Return a random order of ``count`` participants."""
    seed = hashlib.sha256(b"order" + digest + cycle.to_bytes(4, "big")).digest()
    order: list[int] = np.argsort(keys.mask(seed, count), kind="stable").tolist()
    return order
