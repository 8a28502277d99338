"""The head that a client makes for itself from what is public of groups of clients and what it keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.personalization.class_statistics import ClassStatistics
from models.personalization.head_generator import HeadGenerator, posterior_means
from models.sums.clusters import Clusters
from models.sums.group_statistics import GroupStatistics, Spread

GROUP = "group-"


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
        named = {f"{GROUP}{index}": one for index, one in enumerate(statistics.groups, start=1)}
        return cls(clusters, statistics, HeadGenerator.fit(named, clusters.between()))

    def head(self, vector: Tensor, own: ClassStatistics | None) -> Tensor:
        """Return the head (C, d + 1) of a client, without the class prior.

        Args:
            vector: its signature vector, that clusters are of.
            own: its class statistics; None where it has no samples.
        """
        distances, generator = self.distances(vector), self.generator
        means = self._means(distances, own)
        return generator.whitening.head(means, generator.within_class.precision(distances, own))

    def distances(self, vector: Tensor) -> Tensor:
        """Return squared distances (N,) of ``vector`` (k,) to the groups that the generator was fitted to, in order.

        They are fewer than there are groups where some are disbelieved.
        """
        fitted = [int(name.removeprefix(GROUP)) - 1 for name in self.generator.names]
        return self.clusters.distances(vector).double()[fitted]

    def _means(self, distances: Tensor, own: ClassStatistics | None) -> Tensor:
        generator = self.generator
        means, spread = generator.expected(distances)
        if own is None:
            return means
        if self.spread is not None:
            spread = self._clients_spread(spread)
        return posterior_means(means, spread, generator.whitening.observed([own]))

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
class LocalHead:
    """The parts that a client makes its head of.

    Attributes:
        anchor: (C, d + 1) head of the public adapter.
        own: (C, d + 1) made of what is public of groups and of its own class statistics.
        bias: (C,) what is added to the class prior of the client's own counts, so that it is the expected one.
    """

    anchor: Tensor
    own: Tensor
    bias: Tensor

    @classmethod
    def of(
        cls,
        public: PublicHeads,
        anchor: Tensor,
        vector: Tensor,
        own: ClassStatistics,
        frequencies: Tensor,
        strength: float,
    ) -> LocalHead:
        """Make the parts.

        Args:
            public: what the server published.
            anchor: (C, d + 1) head of the public adapter.
            vector: the client's, that clusters are of.
            own: its class statistics.
            frequencies: (C,) its smoothed class frequencies, which the federation's counts correct.
            strength: of the class prior that the client adds; 0 where it adds none.
        """
        return cls(anchor, public.head(vector, own), strength * (public.log_frequencies(own) - frequencies.log()))

    def mixed(self, share: float, scale: float) -> Tensor:
        """Return scale ((1 - share) anchor + share own), with the bias: the head before the client adds its prior."""
        mixed = scale * ((1 - share) * self.anchor + share * self.own)
        mixed[:, -1] += self.bias
        return mixed
