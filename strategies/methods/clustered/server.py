"""Clustered federation: k-means on the clients' signatures, FedIT inside each cluster.

One adapter per cluster, theta_c = sum_{i in c} w_i theta_i over the clients of the cluster in the round, as in the
clustered learning of Ghosh et al. 2019 (arXiv 1906.06629), who divide clients once, by k-means on their local models.
Here signatures divide them, so that a newcomer's cluster is known before it trains, and all clients share one adapter
in the first rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.personalization.signature import Projection, Standardizer
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights
from strategies.methods.clustered.config import ClusteredSettings
from strategies.methods.clustered.division import Division
from strategies.methods.fedit import average_factors


@dataclass(frozen=True)
class ClusteredState:
    """What each cluster has learned and how a client finds its own.

    Attributes:
        adapters: one for each cluster, all the same until they part; one alone before clients are known.
        division: of the clients; None before they are known.
        rounds: rounds made.
    """

    adapters: Sequence[Adapter]
    division: Division | None = None
    rounds: int = 0

    def cluster(self, card: ClientCard) -> int:
        """Return the cluster of a client."""
        return 0 if self.division is None else self.division.cluster(card)


@dataclass(frozen=True)
class Clustered(BaseMethod):
    """Settings: the number of clusters, the rounds before they part, the seed of k-means."""

    clusters: int
    warm_rounds: int
    seed: int
    state_classes = (ClusteredState, Division, Projection, Standardizer, Adapter, Factors)

    def init(self, initial: Adapter) -> ClusteredState:
        """Start with the fresh adapter for everybody."""
        return ClusteredState([initial])

    def register(self, state: ClusteredState, cards: Mapping[str, ClientCard]) -> ClusteredState:
        """Divide the clients that train; once the clusters have parted their centers stay."""
        if state.rounds >= max(1, self.warm_rounds):
            return state
        known = [cards[name] for name in sorted(cards)]
        trained = [card for card in known if card.trains] or known
        division = Division.of(trained, self.clusters, derive_seed(self.seed, "clusters"))
        return replace(state, adapters=[state.adapters[0]] * len(division.centers), division=division)

    def start(self, state: ClusteredState, card: ClientCard) -> Adapter:
        """Send the adapter of the client's cluster."""
        return state.adapters[state.cluster(card)]

    def aggregate(self, state: ClusteredState, updates: Sequence[ClientUpdate]) -> ClusteredState:
        """Average over all clients in the first rounds, later inside each cluster; one without a client stays."""
        parted = state.rounds >= self.warm_rounds
        members: dict[int, list[ClientUpdate]] = {}
        for update in updates:
            members.setdefault(state.cluster(update.card) if parted else 0, []).append(update)
        averages = {
            cluster: average_factors([update.end for update in some], example_weights(some))
            for cluster, some in members.items()
        }
        adapters = [averages.get(index if parted else 0, before) for index, before in enumerate(state.adapters)]
        return replace(state, adapters=adapters, rounds=state.rounds + 1)

    def anchor(self, state: ClusteredState) -> None:
        """Return None: there is no global adapter."""
        return


def build(config: RunConfig) -> Clustered:
    """Return the method with the settings under ``clustered``."""
    settings = config.of(ClusteredSettings)
    return Clustered(settings.clusters, settings.warm_rounds, config.seed)
