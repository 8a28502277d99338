"""Signatures in the plane: two directions of the clients of a run, in which a newcomer has a place too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperlora.messages.signature import ClientCard
from models.personalization.signature import Signature


@dataclass(frozen=True)
class SignatureMap:
    """The two directions of largest variance of the standardised signatures (principal components).

    Attributes:
        mean, scale: of every number of a signature over the clients, (k,).
        directions: orthonormal columns, (k, 2).
        shares: of the variance that each direction has, (2,).
    """

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, cards: Sequence[ClientCard]) -> SignatureMap:
        """Return the map of these clients."""
        table = np.stack([_row(card.signature) for card in cards])
        mean, scale = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-6)
        standard = (table - mean) / scale
        _, singular, right = np.linalg.svd(np.vstack([standard, np.zeros_like(standard[:1])]), full_matrices=False)
        variance = singular**2 / max((singular**2).sum(), 1e-12)
        return cls(mean, scale, right[:2].T, variance[:2])

    def places(self, signatures: Sequence[Signature]) -> np.ndarray:
        """Return coordinates, (n, 2), of signatures of the same size, of the clients or not."""
        table = np.stack([_row(signature) for signature in signatures])
        return np.asarray((table - self.mean) / self.scale @ self.directions)


def _row(signature: Signature) -> np.ndarray:
    return np.asarray(signature.vector().double().numpy())
