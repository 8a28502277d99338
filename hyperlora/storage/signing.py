"""Ed25519 signatures (RFC 8032) of files that a run goes on from, by a key that lies elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hyperlora.storage.files import StorageError


@dataclass(frozen=True)
class SigningKey:
    """Signs, and tells whether a signature is its own; its ``repr`` says nothing of the key."""

    private: Ed25519PrivateKey

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Return the key in a PEM file, as ``hyperlora certs signing`` or ``openssl genpkey`` writes it.

        Raises:
            StorageError: the file cannot be read, or holds no Ed25519 key without a passphrase.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise StorageError(f"the signing key '{path}' cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StorageError(f"'{path}' holds no private key that can be used: expected an Ed25519 key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise StorageError(f"'{path}' holds a key of another kind: expected an Ed25519 key")
        return cls(key)

    def sign(self, content: bytes) -> str:
        """Return the signature of ``content`` in hex."""
        return self.private.sign(content).hex()

    def has_signed(self, content: bytes, signature: str) -> bool:
        """Tell whether ``signature``, in hex, is this key's of ``content``."""
        try:
            self.private.public_key().verify(bytes.fromhex(signature), content)
        except (InvalidSignature, ValueError):
            return False
        return True
