"""The server's half of a secure sum: it passes keys and sealed shares on, and adds masked vectors up as they come.

No masked vector is kept: what the server has of a client is in the running total alone. A client that drops out before
its masked vector is added is left out; one that drops out after that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import comb
from random import SystemRandom

import numpy as np

from hyperlora.secure_sum import keys
from hyperlora.secure_sum.fixed_point import Vector
from hyperlora.secure_sum.graph import Graph
from hyperlora.secure_sum.public_keys import SIGNATURE_BYTES, PublicKeys, SecureSumError, masked_with, summed

MOST_TRIALS = 2000
"""Choices of shares that are put together until one gives what they are said to be shares of."""
LONGEST_SEALED = 1024
"""Bytes of two sealed shares at most; they take some 400."""
SHARE_NUMBER = 4
"""Bytes in front of a share that say whose it is."""
SIGNATURE = SIGNATURE_BYTES // 4
"""Entries after a masked vector that are its sender's signature."""


class UnmaskableError(SecureSumError):
    """There is no sum, since what hides one client's part cannot be put together.

    Attributes:
        name: the client.
        at_fault: whether it gave wrong shares to others; else too few of them answered.
    """

    def __init__(self, name: str, reason: str, *, at_fault: bool) -> None:
        super().__init__(reason)
        self.name, self.at_fault = name, at_fault


@dataclass
class Collector:
    """One sum.

    Attributes:
        length: entries of the vectors.
        public: public keys of the participants.
        sealed: by participant what its neighbours sealed for it; in it are those that answered step 2.
        total: sum of the masked vectors.
        added: who is in it, with their signatures under who sent shares.
        agreed: who signed who is in the sum, with their signatures.
        shares: by participant the shares of its seed or of its key, by who told them.
        liars: who told a wrong share; nothing of them is believed.
        asked: digest of the question that the vectors answer.
    """

    length: int
    public: dict[str, PublicKeys] = field(default_factory=dict)
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    total: Vector = field(default_factory=lambda: np.zeros(0, np.uint32))
    added: dict[str, bytes] = field(default_factory=dict)
    agreed: dict[str, bytes] = field(default_factory=dict)
    shares: dict[str, dict[str, bytes]] = field(default_factory=dict)
    liars: set[str] = field(default_factory=set)
    asked: bytes = b""
    _used: set[bytes] = field(default_factory=set)

    def take_keys(self, name: str, public: PublicKeys) -> None:
        """Take the public keys of one that answered step 1.

        Raises:
            SecureSumError: nobody could agree on a key with it, or it has another's.
        """
        if not (keys.is_public_key(public.masks) and keys.is_public_key(public.seals)):
            raise SecureSumError(f"'{name}' has a public key that is none")
        mine = {public.masks, public.seals, public.signs}
        if len(mine) < 3 or self._used & mine:
            raise SecureSumError(f"'{name}' has a public key that is used already")
        self._used |= mine
        self.public[name] = public

    @cached_property
    def graph(self) -> Graph:
        """Who is whose neighbour, once all keys are there."""
        return Graph.of(self.public)

    @cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        """By participant and holder the number of the share."""
        return {owner: {by: n for n, by in enumerate(self.graph.holders(owner), start=1)} for owner in self.public}

    def take_shares(self, sealed: Mapping[str, Mapping[str, bytes]]) -> None:
        """Take what the participants that answered step 2 sealed for their neighbours."""
        self.total = np.zeros(self.length, np.uint32)
        neighbours = self.graph.neighbours
        self.sealed = {
            to: {
                by: sealed[by][to]
                for by in sorted(neighbours[to] & sealed.keys())
                if len(sealed[by].get(to, b"")) in range(1, LONGEST_SEALED + 1)
            }
            for to in sorted(sealed)
        }

    def sealed_for(self, name: str) -> dict[str, bytes]:
        """Return by every other that sent shares what it sealed for ``name``; nothing where it is no neighbour."""
        return {by: self.sealed[name].get(by, b"") for by in self.sealed if by != name}

    def add(self, name: str, masked: Vector) -> None:
        """Add a participant's masked vector, after which comes its signature.

        Raises:
            SecureSumError: it is no participant or is in the sum already, or its vector has another length or comes
                without its signature under who sent shares.
        """
        if name not in self.sealed or name in self.added:
            raise SecureSumError(f"'{name}' has no part in the sum, or is in it already")
        if masked.shape != (self.length + SIGNATURE,) or masked.dtype != np.uint32:
            raise SecureSumError(f"the masked vector of '{name}' is not one of {self.length} integers and a signature")
        signature = masked[self.length :].astype("<u4").tobytes()
        if not keys.signed(self.public[name].signs, signature, masked_with(self.graph.digest, self.sealed, self.asked)):
            raise SecureSumError(f"'{name}' did not sign whom its vector is masked with and what it answers")
        self.total = self.total + masked[: self.length]
        self.added[name] = signature

    @property
    def dropped(self) -> list[str]:
        """Participants that sent shares and no vector."""
        return sorted(self.sealed.keys() - self.added.keys())

    def check(self) -> None:
        """Check that clients will unmask the sum as it is; raises SecureSumError."""
        if flaw := self.graph.flaw(self.added, self.dropped):
            raise SecureSumError(flaw)

    def take_agreement(self, name: str, signature: bytes) -> None:
        """Take the signature of one that answered step 4; raises SecureSumError where it is none under this sum."""
        text = summed(self.graph.digest, self.added, self.dropped)
        if name not in self.added or not keys.signed(self.public[name].signs, signature, text):
            raise SecureSumError(f"'{name}' did not sign who is in the sum")
        self.agreed[name] = signature

    @property
    def signatures(self) -> dict[str, bytes]:
        """By who is in the sum its signature under that, empty where it did not sign."""
        return {name: self.agreed.get(name, b"") for name in self.added}

    def take_unmasking(self, name: str, shares: Mapping[str, bytes]) -> None:
        """Take the shares that a participant tells in step 5: its own of each of those that gave it one."""
        for owner in self.sealed.keys() & shares.keys():
            number = self._numbers[owner].get(name, 0)
            if number and shares[owner][:SHARE_NUMBER] in (b"", number.to_bytes(SHARE_NUMBER, "big")):
                self.shares.setdefault(owner, {})[name] = shares[owner]

    def unmasked(self) -> Vector:
        """Return the sum of the vectors of those in ``added``, modulo 2^32.

        Raises:
            UnmaskableError: what hides a client's part cannot be put together; it names the client.
        """
        total = self.total
        for name in sorted(self.added):
            seed = self._secret(name, keys.digest, self.public[name].seed)
            total = total - keys.mask(seed, self.length)
        for name in self.dropped:
            private = self._secret(name, keys.public_key_of, self.public[name].masks)
            total = total - self._left_over(name, private)
        return total

    def _left_over(self, name: str, private: bytes) -> Vector:
        """Return what the masks with a participant that dropped out add to the sum."""
        left = np.zeros(self.length, np.uint32)
        for other in sorted(self.graph.neighbours[name] & self.added.keys()):
            pair = keys.mask(self.graph.mask_seed(private, name, other, self.public[other]), self.length)
            left = left + pair if other < name else left - pair
        return left

    def _secret(self, name: str, published: Callable[[bytes], bytes], known: bytes) -> bytes:
        """Return that of ``name`` whose ``published`` form is ``known``; wrong shares of it are left out."""
        every, least = self.shares.get(name, {}), self.graph.least(name)
        told = {by: share for by, share in every.items() if share and by not in self.liars}
        for tries, some in enumerate(_choices(sorted(told), least)):
            with suppress(ValueError):
                if published(found := keys.join_secret([told[by] for by in some])) == known:
                    if tries:
                        self._find_liars(told, some, found)
                    return found
        reason = f"{len(told)} shares of what hides '{name}' do not give it, {least} right ones do"
        fault = len(every) >= least and comb(len(told), least) <= MOST_TRIALS
        raise UnmaskableError(name, reason, at_fault=fault)

    def _find_liars(self, told: Mapping[str, bytes], right: Sequence[str], secret: bytes) -> None:
        """Note who told a share that does not give the secret together with all but one of the right ones."""
        rest = [told[by] for by in right[1:]]
        for by in told.keys() - set(right):
            with suppress(ValueError):
                if keys.join_secret([told[by], *rest]) == secret:
                    continue
            self.liars.add(by)


def _choices(tellers: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    """Yield choices of ``count`` tellers: all, or so many by chance that a few who lie are missed."""
    if comb(len(tellers), count) <= MOST_TRIALS:
        yield from combinations(tellers, count)
    else:
        yield from (SystemRandom().sample(tellers, count) for _ in range(MOST_TRIALS))
