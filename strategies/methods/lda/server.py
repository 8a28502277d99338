"""LDA: a linear discriminant on frozen features, a client's class means shrunk to those of all (one round).

m_c is the mean of class c over all clients that train and Sigma the pooled covariance within classes, as in FedCGS
(arXiv 2503.06962), with ``ridge`` of its mean variance added. Client i gets m_ic = (n_ic xbar_ic + k m_c) / (n_ic + k),
between its own means and the global ones as in pFedFDA (NeurIPS 2024, arXiv 2411.00329), whose weight is
cross-validated and here that of k samples. Its head is W = M Sigma^-1, b_c = -m_ic^T Sigma^-1 m_ic / 2; log pi_i is
the class prior that clients add. With ``clusters`` a client's means are shrunk to its cluster's, and these to m_c.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.personalization.class_statistics import (
    ClassStatistics,
    discriminant,
    mean_by_class,
    pooled_covariance,
)
from strategies.methods.closed_form import ClosedForm, DescribedState, require_no_noise
from strategies.methods.clustered.division import Division
from strategies.methods.lda.config import LdaSettings


@dataclass(frozen=True)
class Lda(ClosedForm):
    """Settings: k, the ridge, the number of clusters (0: none) and the seed they are drawn with."""

    shrinkage: float
    ridge: float
    clusters: int
    seed: int

    def register(self, state: DescribedState, cards: Mapping[str, ClientCard]) -> DescribedState:
        """Remember who trains, and divide the clients where that is switched on."""
        state = super().register(state, cards)
        if not (self.clusters and state.training):
            return state
        training = [cards[name] for name in state.training]
        division = Division.of(training, self.clusters, derive_seed(self.seed, "clusters"))
        return replace(state, clusters={name: division.cluster(card) for name, card in cards.items()})

    def heads(self, state: DescribedState, cards: Sequence[ClientCard]) -> list[Tensor]:
        """Return the discriminant of each client's shrunk means."""
        known, clusters = state.described(), state.clusters
        covariance, overall = pooled_covariance(known.values(), self.ridge).double(), mean_by_class(known.values())
        between = {
            cluster: self._shrunk([one for name, one in known.items() if clusters[name] == cluster], overall)
            for cluster in {clusters[name] for name in known if name in clusters}
        }
        heads = []
        for card in cards:
            towards = between.get(clusters.get(card.client_id, -1), overall)
            own = state.statistics.get(card.client_id)
            heads.append(discriminant(self._shrunk([own] if own else [], towards), covariance))
        return heads

    def global_head(self, state: DescribedState) -> Tensor:
        """Return the discriminant of the global means."""
        known = state.described().values()
        return discriminant(mean_by_class(known), pooled_covariance(known, self.ridge).double())

    def _shrunk(self, statistics: Sequence[ClassStatistics], towards: Tensor) -> Tensor:
        return shrunk(statistics, towards, self.shrinkage)


def shrunk(statistics: Collection[ClassStatistics], towards: Tensor, strength: float) -> Tensor:
    """Return (sum_i n_ic xbar_ic + strength towards_c) / (sum_i n_ic + strength) over some clients, (C, d)."""
    counts, sums = torch.full((len(towards),), strength, dtype=torch.float64), strength * towards
    for one in statistics:
        counts, sums = counts + one.counts, sums + one.sums
    return sums / counts[:, None]


def build(config: RunConfig) -> Lda:
    """Return the method with the settings under ``lda``; raises ConfigError for a private run."""
    require_no_noise(config)
    settings = config.of(LdaSettings)
    return Lda(settings.shrinkage, settings.ridge, settings.clusters, config.seed)
