"""Named seeds: every random draw of the product is derived from the run's seed and the names of what it is for."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all ``parts`` and on nothing else (no process, no machine)."""
    return hashed("\x1f".join(f"{type(part).__name__}:{part}" for part in parts)) >> 1


def unit_interval(key: str, purpose: str) -> float:
    """Return a number in [0, 1) that depends on ``key`` and ``purpose`` only, as if drawn uniformly."""
    return (hashed(key, salt=purpose) >> 11) / 2**53


def hashed(text: str, *, size: int = 8, salt: str = "") -> int:
    """Return the hash of a text as an integer of ``size`` bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size, salt=salt.encode()[:16]).digest(), "big")


def content_key(content: bytes) -> str:
    """Return the hash of what a sample is made of: equal samples have equal keys wherever they lie."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
