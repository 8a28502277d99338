"""What the classes of a group of clients look like, from sums over the group, and by how much single clients differ.

A client tells its class statistics as tensors that add up, at the place of its cluster: counts and sums of features by
class, the scatter around its own class means, and how often two of its samples are of one class. When the sums are
public it tells, in a second sum, how far its own class means lie from what the groups predict for it: the variances
between clients, which no sum of class statistics holds, follow by the method of moments (Henderson 1953, method 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.personalization.class_means import Observed
from models.personalization.class_statistics import (
    ClassStatistics,
    discriminant,
    mean_by_class,
    pooled_covariance,
)
from models.personalization.head_generator import RIDGE, HeadGenerator

SCATTER_RANK = 64
"""Rank of the scatter within classes that is published of a group."""
LARGEST_SHARE = 0.8
"""Of a class's samples in a group: a client that has more tells nothing of how clients differ in that class."""


def contribution(one: ClassStatistics, group: int, groups: int) -> dict[str, Tensor]:
    """Return what a client tells of its classes: tensors of equal shape at all clients, zero but for its group's part.

    Args:
        one: its class statistics, of C classes in d features.
        group: its group.
        groups: K.
    """
    samples = one.counts.sum()
    pairs = (one.counts * (one.counts - 1)).sum() / (samples * (samples - 1)).clamp_min(1.0)
    told = {
        "counts": one.counts,
        "sums": one.sums,
        "scatter": one.dense_scatter(),
        "freedom": torch.tensor(one.freedom),
        "clients": torch.tensor(1.0),
        "paired": torch.tensor(float(samples > 1)),
        "agreeing": pairs,
    }
    return {name: placed(part, group, groups) for name, part in told.items()}


def placed(part: Tensor, group: int, groups: int) -> Tensor:
    """Return zeros (groups, ...) with ``part`` (...) at the place of a group."""
    whole = part.new_zeros(groups, *part.shape)
    whole[group] = part
    return whole


@dataclass(frozen=True)
class GroupStatistics:
    """Sums over the clients of K groups; all of it is public.

    Attributes:
        groups: statistics of each group as if it were one client, in the order of the clusters.
        clients: (K,) clients of each.
        agreeing: mean share of pairs of a client's samples that are of one class, over clients that have two samples.
    """

    groups: tuple[ClassStatistics, ...]
    clients: Tensor
    agreeing: float

    @classmethod
    def of(cls, sums: Mapping[str, Tensor]) -> GroupStatistics:
        """Read the sums of contributions."""
        count = len(sums["clients"])
        groups = tuple(_group({name: part[one] for name, part in sums.items()}) for one in range(count))
        return cls(groups, sums["clients"], float(sums["agreeing"].sum() / sums["paired"].sum().clamp_min(1.0)))

    def discriminant(self) -> Tensor:
        """Return the head (C, d + 1) of the classes of all groups; raises ValueError without two samples of a class."""
        return discriminant(mean_by_class(self.groups), pooled_covariance(self.groups, RIDGE).double())

    def pseudo_counts(self) -> Tensor:
        """Return the parameters (C,) of the Dirichlet distribution of clients' class frequencies."""
        total = torch.stack([one.counts for one in self.groups]).sum(dim=0) + 1.0
        return dirichlet_parameters(total / total.sum(), self.agreeing)


def dirichlet_parameters(mean: Tensor, agreeing: float) -> Tensor:
    """Return the parameters (C,) of a Dirichlet distribution of class frequencies, by its moments.

    Two samples of a client are of one class with probability (a sum_c m_c^2 + 1) / (a + 1), a the concentration.

    Args:
        mean: (C,) frequencies m.
        agreeing: that probability.
    """
    concentration = (1.0 - agreeing) / max(agreeing - float(mean.square().sum()), 1e-3)
    return mean * min(max(concentration, 0.1), 100.0)


def _group(sums: Mapping[str, Tensor]) -> ClassStatistics:
    """Return statistics whose covariance is the scatter over its own degrees of freedom.

    A group's scatter is around the means of its clients, so that it has fewer degrees of freedom than its counts tell.
    """
    counts = sums["counts"].clamp_min(0.0)
    freedom = float((counts - 1.0).clamp_min(0.0).sum())
    scatter = sums["scatter"].double() * freedom / max(float(sums["freedom"]), 1.0)
    values, directions = torch.linalg.eigh(scatter)
    factor = (values.clamp_min(0.0).sqrt()[:, None] * directions.mT)[-SCATTER_RANK:]
    remainder = (scatter.diagonal() - factor.square().sum(dim=0)).clamp_min(0.0)
    return ClassStatistics(counts.float(), sums["sums"].float(), factor.float(), remainder.float())


@dataclass(frozen=True)
class Spread:
    """Variances of clients around what their group predicts, in units of the variance within classes.

    Attributes:
        client: of what all classes of a client share.
        single: of what one class of a client has of its own.
    """

    client: float
    single: float

    @classmethod
    def of(cls, sums: Tensor) -> Spread:
        """Read the sum (4,) of :func:`deviations`."""
        squares, classes, products, pairs = sums.tolist()
        total = max(squares / max(classes, 1.0), 0.0)
        shared = min(max(products / max(pairs, 1.0), 0.0), total)
        return cls(shared, total - shared)

    def covariance(self, classes: int) -> Tensor:
        """Return the covariance (C, C) of one coordinate of a client's class means."""
        return self.client + self.single * torch.eye(classes, dtype=torch.float64)


def deviations(generator: HeadGenerator, own: ClassStatistics, group: ClassStatistics, distances: Tensor) -> Tensor:
    """Return what a client tells of its own deviation (4,): squares and their number, products of classes and theirs.

    Args:
        generator: fitted to the groups.
        own: the client's class statistics.
        group: those of its group, which has it in it.
        distances: (N,) squared distances of the client's signature to the groups that the generator was fitted to.
    """
    mine = generator.whitening.observed([own])
    share = own.counts[mine.label].double() / group.counts[mine.label].double()
    some = (share <= LARGEST_SHARE).nonzero()[:, 0]
    mine, share = mine.of(some), share[some]
    apart = (mine.means - generator.expected_means(distances.double(), None)[mine.label]) / (1 - share).sqrt()[:, None]
    return _moments(apart, mine)


def _moments(apart: Tensor, mine: Observed) -> Tensor:
    squares = apart.square().mean(dim=1) - mine.noise
    together = apart @ apart.mT / apart.shape[1]
    count = len(apart)
    products = together.sum() - together.diagonal().sum()
    return torch.stack([squares.sum(), torch.tensor(float(count)), products, torch.tensor(float(count * (count - 1)))])
