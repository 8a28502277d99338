"""Clients divided into clusters by k-means on their signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.messages.signature import ClientCard
from models.personalization.signature import Projection
from models.personalization.similarity import fit_projection, signature_vector, vector_groups

DIMENSIONS = 16
RESTARTS = 10


@dataclass(frozen=True)
class Division:
    """The centers (clusters, p) of clusters, and the projection of signature vectors to the p numbers they live in."""

    projection: Projection
    centers: Tensor

    @classmethod
    def of(cls, cards: Sequence[ClientCard], clusters: int, seed: int) -> Division:
        """Divide clients into at most ``clusters``, fewer where fewer signatures differ.

        Coordinates are standardised over the clients; feature means, feature deviations and class frequencies weigh
        what HyperLoRA's distance gives them.
        """
        vectors, projection = fitted(cards)
        return cls(projection, k_means(projection(vectors), clusters, seed))

    def cluster(self, card: ClientCard) -> int:
        """Return the cluster whose center is nearest to the client's signature."""
        point = self.projection(signature_vector(card.signature))
        return int((self.centers - point).square().sum(dim=1).argmin())


def fitted(cards: Sequence[ClientCard]) -> tuple[Tensor, Projection]:
    """Return the signature vectors (N, k) of clients and the projection that is fitted to them."""
    vectors = torch.stack([signature_vector(card.signature) for card in cards])
    return vectors, fit_projection(vectors, vector_groups(cards[0].signature), DIMENSIONS)


def projected_signatures(cards: Mapping[str, ClientCard]) -> dict[str, Tensor]:
    """Return client-id -> (p,) what a client's signature is projected to."""
    vectors, projection = fitted(list(cards.values()))
    return dict(zip(cards, projection(vectors), strict=True))


def k_means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the centers (c, p) of ``points`` (n, p), c at most ``clusters`` and n: the best of ten starts.

    k-means++ of scikit-learn (Arthur and Vassilvitskii 2007).
    """
    from sklearn.cluster import KMeans  # brings scipy, which most runs do without

    count = len(torch.unique(points, dim=0))
    fitted = KMeans(min(clusters, count), n_init=RESTARTS, random_state=seed % 2**32).fit(points.double().numpy())
    return torch.as_tensor(fitted.cluster_centers_, dtype=points.dtype)
