"""The server's half of a secure sum: it passes keys and sealed shares on, and adds masked vectors up as they come.

No masked vector is kept: what the server has of a client is in the running total alone. A client that drops out before
its masked vector is added is left out; one that drops out after that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations, islice

import numpy as np

from hyperlora.secure_sum import keys
from hyperlora.secure_sum.fixed_point import Vector
from hyperlora.secure_sum.participant import PublicKeys, SecureSumError, least_answers

MOST_TRIALS = 200
"""Choices of shares that are put together until one gives what they are said to be shares of."""


class UnmaskableError(SecureSumError):
    """There is no sum, since what hides one client's part cannot be put together.

    Attributes:
        name: the client; it gave wrong shares to others, or too few of them answered.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


@dataclass
class Collector:
    """One sum.

    Attributes:
        length: entries of the vectors.
        public: public keys of the participants.
        sealed: by participant what the others sealed for it; in it are those that answered step 2.
        total: sum of the masked vectors.
        added: who is in it.
        shares: by participant the shares of its seed or of its key.
    """

    length: int
    public: dict[str, PublicKeys] = field(default_factory=dict)
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    total: Vector = field(default_factory=lambda: np.zeros(0, np.uint32))
    added: set[str] = field(default_factory=set)
    shares: dict[str, list[bytes]] = field(default_factory=dict)

    def take_keys(self, name: str, public: PublicKeys) -> None:
        """Take the public keys of one that answered step 1.

        Raises:
            SecureSumError: nobody could agree on a key with it, or it has another's.
        """
        if not (keys.is_public_key(public.masks) and keys.is_public_key(public.seals)):
            raise SecureSumError(f"'{name}' has a public key that is none")
        used = {key for one in self.public.values() for key in (one.masks, one.seals)}
        if public.masks == public.seals or used & {public.masks, public.seals}:
            raise SecureSumError(f"'{name}' has a public key that is used already")
        self.public = dict(sorted({**self.public, name: public}.items()))

    def take_shares(self, sealed: Mapping[str, Mapping[str, bytes]]) -> None:
        """Take what the participants that answered step 2 sealed for each other."""
        self.total = np.zeros(self.length, np.uint32)
        self.sealed = {
            to: {by: texts[to] for by, texts in sealed.items() if by != to and to in texts} for to in sorted(sealed)
        }

    def add(self, name: str, masked: Vector) -> None:
        """Add a participant's masked vector.

        Raises:
            SecureSumError: it is no participant, is in the sum already, or its vector has another length.
        """
        if name not in self.sealed or name in self.added:
            raise SecureSumError(f"'{name}' has no part in the sum, or is in it already")
        if masked.shape != (self.length,) or masked.dtype != np.uint32:
            raise SecureSumError(f"the masked vector of '{name}' is not one of {self.length} integers")
        self.total = self.total + masked
        self.added.add(name)

    @property
    def dropped(self) -> list[str]:
        """Participants that sent shares and no vector."""
        return sorted(self.sealed.keys() - self.added)

    def take_unmasking(self, shares: Mapping[str, bytes]) -> None:
        """Take the shares that one participant tells in step 4."""
        for owner in self.sealed.keys() & shares.keys():
            self.shares.setdefault(owner, []).append(shares[owner])

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
        for other in sorted(self.added):
            pair = keys.mask(keys.agreed_key(private, self.public[other].masks, "mask"), self.length)
            left = left + pair if other < name else left - pair
        return left

    def _secret(self, name: str, published: Callable[[bytes], bytes], known: bytes) -> bytes:
        """Return that of ``name`` whose ``published`` form is ``known``; wrong shares of it are left out."""
        told, least = [share for share in self.shares.get(name, []) if share], least_answers(len(self.public))
        for some in islice(combinations(told, least), MOST_TRIALS):
            with suppress(ValueError):
                if published(found := keys.join_secret(some)) == known:
                    return found
        raise UnmaskableError(name, f"{len(told)} shares of what hides '{name}' do not give it, {least} right ones do")
