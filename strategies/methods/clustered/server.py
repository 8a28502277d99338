"""Clustered federation: k-means on the clients' signatures, FedIT inside each cluster.

One adapter per cluster, theta_c = sum_{i in c} w_i theta_i over the clients of the cluster in the round, as in the
clustered learning of Ghosh et al. 2019 (arXiv 1906.06629), who divide clients once, by k-means on their local models.
Here signatures divide them, so that a newcomer's cluster is known before it trains, and all clients share one adapter
in the first rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.personalization.signature import Projection, Standardizer
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights
from strategies.methods.clustered.config import ClusteredSettings
from strategies.methods.fedit import average_factors
from strategies.methods.hyperlora.state import INITIAL_METRIC, signature_vector, vector_groups

DIMENSIONS = 16
RESTARTS = 10


@dataclass(frozen=True)
class ClusteredState:
    """What each cluster has learned and how a client finds its own.

    Attributes:
        adapters: one for each cluster, all the same until they part; one alone before clients are known.
        centers: (clusters, p) of the clusters; None before clients are known.
        projection: from signature vectors to the p numbers that are clustered.
        rounds: rounds made.
    """

    adapters: Sequence[Adapter]
    centers: Tensor | None = None
    projection: Projection | None = None
    rounds: int = 0


@dataclass(frozen=True)
class Clustered(BaseMethod):
    """Settings: the number of clusters, the rounds before they part, the seed of k-means."""

    clusters: int
    warm_rounds: int
    seed: int
    state_classes = (ClusteredState, Projection, Standardizer, Adapter, Factors)

    def init(self, initial: Adapter) -> ClusteredState:
        """Start with the fresh adapter for everybody."""
        return ClusteredState([initial])

    def register(self, state: ClusteredState, cards: Mapping[str, ClientCard]) -> ClusteredState:
        """Divide the clients that train; once the clusters have parted their centers stay."""
        if state.centers is not None and state.rounds >= self.warm_rounds:
            return state
        known = [cards[name] for name in sorted(cards)]
        trained = [card for card in known if card.trains] or known
        vectors = torch.stack([signature_vector(card.signature) for card in trained])
        groups = vector_groups(trained[0].signature)
        weights = torch.tensor(INITIAL_METRIC)[groups] / torch.bincount(groups)[groups]
        projection = Projection.fit(vectors, weights.sqrt(), DIMENSIONS)
        centers = k_means(projection(vectors), self.clusters, derive_seed(self.seed, "clusters"))
        return replace(state, adapters=[state.adapters[0]] * len(centers), centers=centers, projection=projection)

    def start(self, state: ClusteredState, card: ClientCard) -> Adapter:
        """Send the adapter of the client's cluster."""
        return state.adapters[cluster_of(state, card)]

    def aggregate(self, state: ClusteredState, updates: Sequence[ClientUpdate]) -> ClusteredState:
        """Average over all clients in the first rounds, later inside each cluster; one without a client stays."""
        parted = state.rounds >= self.warm_rounds
        members: dict[int, list[ClientUpdate]] = {}
        for update in updates:
            members.setdefault(cluster_of(state, update.card) if parted else 0, []).append(update)
        averages = {
            cluster: average_factors([update.end for update in some], example_weights(some))
            for cluster, some in members.items()
        }
        adapters = [averages.get(index if parted else 0, before) for index, before in enumerate(state.adapters)]
        return replace(state, adapters=adapters, rounds=state.rounds + 1)

    def anchor(self, state: ClusteredState) -> None:
        """Return None: there is no global adapter."""
        return


def cluster_of(state: ClusteredState, card: ClientCard) -> int:
    """Return the cluster whose center is nearest to the client's signature; 0 before there are any."""
    if state.centers is None or state.projection is None:
        return 0
    point = state.projection(signature_vector(card.signature))
    return int((state.centers - point).square().sum(dim=1).argmin())


def k_means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the centers (c, p) of ``points`` (n, p), c at most ``clusters`` and n: the best of ten starts.

    k-means++ of scikit-learn (Arthur and Vassilvitskii 2007).
    """
    from sklearn.cluster import KMeans  # brings scipy, which no other method needs

    count = len(torch.unique(points, dim=0))
    fitted = KMeans(min(clusters, count), n_init=RESTARTS, random_state=seed % 2**32).fit(points.double().numpy())
    return torch.as_tensor(fitted.cluster_centers_, dtype=points.dtype)


def build(config: RunConfig) -> Clustered:
    """Return the method with the settings under ``clustered``."""
    settings = config.of(ClusteredSettings)
    return Clustered(settings.clusters, settings.warm_rounds, config.seed)
