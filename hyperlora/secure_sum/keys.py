"""The cryptography of a secure sum: nothing but calls of reviewed libraries, given names.

Key agreement, encryption and secret sharing are Flower's (ECDH on SECP384R1 with HKDF, Fernet, Shamir's scheme of
pycryptodome). Masks are expanded by ChaCha20 of ``cryptography``, and not by Flower's ``pseudo_rand_gen``, which draws
them from a Mersenne twister that is seeded with 32 bits.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

from hyperlora.secure_sum.fixed_point import Vector

SEED_BYTES = 32


def key_pair() -> tuple[bytes, bytes]:
    """Return a fresh private key and its public key."""
    private, public = generate_key_pairs()
    return private_key_to_bytes(private), public_key_to_bytes(public)


def agreed_key(private: bytes, public: bytes) -> bytes:
    """Return what two parties agree on, each from its own private key and the other's public key."""
    return generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))


def fresh_seed() -> bytes:
    """Return the seed of a mask, of the operating system's randomness."""
    return os.urandom(SEED_BYTES)


def mask(seed: bytes, length: int) -> Vector:
    """Return ``length`` integers modulo 2^32 that nobody without the seed can tell from random ones.

    Args:
        seed: 32 bytes, or a key of :func:`agreed_key`; never used for a second sum.
        length: of the vector.
    """
    key = seed if len(seed) == SEED_BYTES else base64.urlsafe_b64decode(seed)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * length)), dtype="<u4").astype(np.uint32)


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypt and authenticate ``text``."""
    return encrypt(key, text)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Inverse of :func:`seal`; raises where it was changed."""
    return decrypt(key, sealed)


def split_secret(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return ``count`` shares of which any ``threshold`` give the secret, and fewer tell nothing of it."""
    return create_shares(secret, threshold, count)


def join_secret(shares: Sequence[bytes]) -> bytes:
    """Inverse of :func:`split_secret`; raises ValueError where the shares do not belong together."""
    return combine_shares(list(shares))
