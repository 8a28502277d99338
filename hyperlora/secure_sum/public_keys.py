"""What all may know of the participants of a secure sum, and what they sign of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

KEY_BYTES, SIGNATURE_BYTES, MOST_VOUCHED = 32, 64, 256


class SecureSumError(ValueError):
    """What a party will not do, in one sentence."""


@dataclass(frozen=True)
class PublicKeys:
    """What all may know of a client in one sum.

    Attributes:
        masks, seals, signs: public keys for masks, for sealed shares and for signatures.
        seed: the digest of the seed of its own mask.
        vouched: its site's signature under all of these; empty where the site has no key.
    """

    masks: bytes
    seals: bytes
    signs: bytes
    seed: bytes
    vouched: bytes = b""

    def __post_init__(self) -> None:
        """Check the lengths, since every participant gets the keys of all; raises SecureSumError."""
        if any(len(one) != KEY_BYTES for one in (self.masks, self.seals, self.signs, self.seed)):
            raise SecureSumError(f"a public key, or the digest of a seed, is not of {KEY_BYTES} bytes")
        if len(self.vouched) > MOST_VOUCHED:
            raise SecureSumError(f"a site's signature has more than {MOST_VOUCHED} bytes")

    def as_hex(self) -> dict[str, str]:
        """Return them in hexadecimal digits, by name."""
        return {name: value.hex() for name, value in asdict(self).items()}

    @classmethod
    def from_hex(cls, told: Mapping[str, str]) -> PublicKeys:
        """Inverse of :meth:`as_hex`; raises TypeError or ValueError."""
        return cls(**{name: bytes.fromhex(value) for name, value in told.items()})


def participants_digest(public: Mapping[str, PublicKeys]) -> bytes:
    """Return by what names and keys of all participants are known again, in whatever order they come."""
    return _digest({name: one.as_hex() for name, one in public.items()})


def vouched_for(run_id: int, sum_name: str, client_id: str, own: PublicKeys) -> bytes:
    """Return what a client's site signs: that these are its client's keys, in one sum of one run."""
    return _digest(["vouched", run_id, sum_name, client_id, own.as_hex() | {"vouched": ""}])


def masked_with(participants: bytes, shared: Iterable[str], asked: bytes) -> bytes:
    """Return what a client signs when it masks: with whom, and a digest of what it was asked."""
    return _digest(["masked", participants.hex(), sorted(shared), asked.hex()])


def summed(participants: bytes, answered: Iterable[str], dropped: Iterable[str]) -> bytes:
    """Return what a client signs before it tells shares: whose vectors are in the sum, and whose are not."""
    return _digest(["summed", participants.hex(), sorted(answered), sorted(dropped)])


def _digest(told: object) -> bytes:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()
