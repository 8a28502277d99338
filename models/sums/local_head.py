"""The head that a client makes for itself from what is public of groups of clients and what it keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics
from models.personalization.head_generator import HeadGenerator
from models.sums.clusters import Clusters
from models.sums.group_statistics import GroupStatistics, Spread


@dataclass(frozen=True)
class PublicHeads:
    """All that a client needs to make its head; every number of it is a function of sums.

    Attributes:
        clusters: centroids of the groups.
        statistics: of the groups.
        generator: fitted to these as to clients.
        spread: of clients around what their group predicts; None until it was told.
    """

    clusters: Clusters
    statistics: GroupStatistics
    generator: HeadGenerator
    spread: Spread | None = None

    @classmethod
    def of(cls, clusters: Clusters, statistics: GroupStatistics) -> PublicHeads:
        """Fit to groups; raises ValueError where no group has two samples of a class."""
        named = {f"group-{index}": one for index, one in enumerate(statistics.groups)}
        return cls(clusters, statistics, HeadGenerator.fit(named, clusters.between()))

    def head(self, vector: Tensor, own: ClassStatistics | None) -> Tensor:
        """Return the head (C, d + 1) of a client, without the class prior.

        Args:
            vector: its signature vector, that clusters are of.
            own: its class statistics; None where it has no samples.
        """
        distances, generator = self.clusters.distances(vector).double(), self.generator
        means = self._means(distances, own)
        return generator.whitening.head(means, generator.within_class.precision(distances, own))

    def _means(self, distances: Tensor, own: ClassStatistics | None) -> Tensor:
        generator = self.generator
        means, spread = generator.expected(distances)
        if own is None:
            return means
        if self.spread is not None:
            spread = self._clients_spread(spread)
        mine = generator.whitening.observed([own])
        seen = mine.label
        gain = torch.linalg.solve(spread[seen][:, seen] + torch.diag(mine.noise), mine.means - means[seen])
        updated: Tensor = means + spread[:, seen] @ gain
        return updated

    def _clients_spread(self, groups: Tensor) -> Tensor:
        """Return how clients lie around the prediction (C, C); where no group has a class, nothing is known of it."""
        assert self.spread is not None
        counts = torch.stack([one.counts for one in self.statistics.groups]).sum(dim=0)
        unknown = torch.diag((counts == 0).double() * groups.diagonal())
        return self.spread.covariance(len(counts)) + unknown

    def log_frequencies(self, own: ClassStatistics) -> Tensor:
        """Return the logarithm of a client's expected class frequencies (C,), given its counts."""
        expected = own.counts + self.statistics.pseudo_counts()
        return torch.log(expected / expected.sum())


@dataclass(frozen=True)
class ServedHead:
    """How a client mixes its head with the anchor's.

    Attributes:
        share: of its own head, the rest is the anchor's.
        scale: factor on the mixture.
        prior: strength of the class prior that the client adds to the bias; 0 where it adds none.
    """

    share: float
    scale: float
    prior: float

    def of(
        self, public: PublicHeads, anchor: Adapter, vector: Tensor, own: ClassStatistics, frequencies: Tensor
    ) -> Adapter:
        """Return what a client makes of the anchor, before it adds its class prior.

        Args:
            public: what the server published.
            anchor: the public adapter.
            vector: the client's, that clusters are of.
            own: its class statistics.
            frequencies: (C,) its smoothed class frequencies, which the federation's counts correct.
        """
        mixed = self.scale * ((1 - self.share) * anchor.head + self.share * public.head(vector, own))
        mixed[:, -1] += self.prior * (public.log_frequencies(own) - frequencies.log())
        return Adapter(anchor.low_rank, mixed)
