"""The cryptography of a secure sum: calls of reviewed libraries, given names.

Key agreement (X25519 with HKDF), signatures (Ed25519), sealing (Fernet) and mask expansion (ChaCha20) are those of
``cryptography``, secrets are shared by Shamir's scheme of pycryptodome; what the server makes of shares it is told is
interpolated here (:mod:`hyperlora.secure_sum.interpolation`). Flower's SecAgg+ is built of the same parts, and not used
here: it speaks another message format, and its ``pseudo_rand_gen`` draws masks from a Mersenne twister that is seeded
with 32 bits.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hyperlora.secure_sum.fixed_point import Vector
from hyperlora.secure_sum.interpolation import values_at_zero

SEED_BYTES, HALF = 32, 16


def key_pair() -> tuple[bytes, bytes]:
    """Return a fresh private key and its public key, 32 bytes each."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def agreed_key(private: bytes, public: bytes, purpose: str) -> bytes:
    """Return 32 bytes that two parties agree on, each from its own private key and the other's public key.

    Raises:
        ValueError: a key is none.
    """
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=purpose.encode()).derive(shared)


def public_key_of(private: bytes) -> bytes:
    """Return the public key of a private one; raises ValueError where it is none."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_public_key(public: bytes) -> bool:
    """Tell whether others can agree on a key with the owner of ``public``."""
    try:
        agreed_key(X25519PrivateKey.generate().private_bytes_raw(), public, "trial")
    except ValueError:
        return False
    return True


def signing_pair() -> tuple[bytes, bytes]:
    """Return a fresh private key for signatures and its public key, 32 bytes each."""
    private = Ed25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def verifier_of(private: bytes) -> bytes:
    """Return the public key of a private one for signatures."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private: bytes, text: bytes) -> bytes:
    """Return the owner's signature under ``text``, 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(text)


def signed(public: bytes, signature: bytes, text: bytes) -> bool:
    """Tell whether the owner of ``public`` signed ``text``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def digest(seed: bytes) -> bytes:
    """Return by what a seed is known again, which tells nothing of it."""
    return hashlib.sha256(seed).digest()


def fresh_seed() -> bytes:
    """Return the seed of a mask, of the operating system's randomness."""
    return os.urandom(SEED_BYTES)


def mask(seed: bytes, length: int) -> Vector:
    """Return ``length`` integers modulo 2^32 that nobody without the seed can tell from random ones.

    Args:
        seed: 32 bytes, never used for a second sum.
        length: of the vector.
    """
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * length)), dtype="<u4").astype(np.uint32)


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypt and authenticate ``text``."""
    return Fernet(base64.urlsafe_b64encode(key)).encrypt(text)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Inverse of :func:`seal`; raises InvalidToken where it was changed."""
    return Fernet(base64.urlsafe_b64encode(key)).decrypt(sealed)


def split_secret(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return ``count`` shares of which any ``threshold`` give the secret, and fewer tell nothing of it.

    Args:
        secret: 32 bytes.
        threshold: shares that are needed.
        count: shares in all.
    """
    halves = [Shamir.split(threshold, count, half, ssss=False) for half in (secret[:HALF], secret[HALF:])]
    return [
        bytes([0, 0, index >> 8, index & 255]) + one + other for (index, one), (_, other) in zip(*halves, strict=True)
    ]


def join_secret(shares: Sequence[bytes]) -> bytes:
    """Inverse of :func:`split_secret`; raises ValueError where the shares are none of one secret."""
    if any(len(share) != 4 + SEED_BYTES for share in shares):
        raise ValueError("a share has another length than those of a secret have")
    numbered = [(int.from_bytes(share[:4], "big"), share[4:]) for share in shares]
    halves = [[int.from_bytes(own[part], "big") for _, own in numbered] for part in (slice(HALF), slice(HALF, None))]
    found = values_at_zero([index for index, _ in numbered], halves)
    return b"".join(half.to_bytes(HALF, "big") for half in found)
