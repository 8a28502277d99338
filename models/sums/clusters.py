"""Cluster clients without seeing any client's signature: k-means in which every step is a sum over clients.

A client finds its own cluster among public centroids and contributes a vector that is zero outside that cluster's part.
Clusters are split along their direction of largest variance (Linde, Buzo and Gray 1980), which is found by a few power
iterations, each of them a sum as well, and moved by Lloyd's steps. None has fewer than ``least`` clients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

POWER_STEPS, LLOYD_STEPS = 3, 3
FURTHEST = 5.0
"""How many standard deviations a coordinate lies from the mean at most."""


class SumsOfVectors(Protocol):
    """What clients are asked of their vectors; every answer is a sum over them."""

    def moments(self) -> Tensor:
        """Return the sum of :func:`moments`."""

    def spread(self, clusters: Clusters, directions: Tensor) -> Tensor:
        """Return the sum of :func:`spread`."""

    def members(self, clusters: Clusters) -> Tensor:
        """Return the sum of :func:`membership`."""


@dataclass(frozen=True)
class Clusters:
    """Public centroids.

    Attributes:
        center, scale: (k,) what vectors are standardised by: mean and standard deviation over clients.
        centroids: (K, k) in these units.
        counts: (K,) clients of each.
    """

    center: Tensor
    scale: Tensor
    centroids: Tensor
    counts: Tensor

    def standardized(self, vector: Tensor) -> Tensor:
        """Return a vector (k,) in these units, within -+ ``FURTHEST``."""
        return ((vector - self.center) / self.scale).clamp(-FURTHEST, FURTHEST)

    def distances(self, vector: Tensor) -> Tensor:
        """Return the mean squared differences (K,) of a vector to all centroids."""
        return (self.standardized(vector) - self.centroids).square().mean(dim=1)

    def nearest(self, vector: Tensor) -> int:
        """Return the index of the cluster that a vector belongs to."""
        return int(self.distances(vector).argmin())

    def between(self) -> Tensor:
        """Return the mean squared differences of the centroids, (K, K)."""
        return (self.centroids[:, None] - self.centroids).square().mean(dim=2)


def grow_clusters(sums: SumsOfVectors, *, least: int, most: int) -> Clusters:
    """Return clusters of clients.

    Args:
        sums: asks the clients.
        least: fewest clients of a cluster.
        most: clusters at most.

    Raises:
        ValueError: there are fewer than ``least`` clients.
    """
    told = sums.moments()
    length = (len(told) - 1) // 2
    count, center = float(told[0]), told[1 : length + 1] / told[0]
    if count < least:
        raise ValueError(f"sums over fewer than {least} clients would tell of single ones, and there are {count:.0f}")
    variance = told[length + 1 :] / told[0] - center.square()
    scale = variance.clamp_min(0.0).sqrt().clamp_min(1e-6)
    found = Clusters(center.float(), scale.float(), torch.zeros(1, length), told[:1].float())
    while (tried := _split(sums, found, least, most)) is not None:
        found = tried
    return found


def _split(sums: SumsOfVectors, found: Clusters, least: int, most: int) -> Clusters | None:
    """Return more clusters than before, none too small; None where there is no way to.

    Of those that are large enough, the ones are split that spread at least half as far as the widest.
    """
    if len(found.counts) >= most or not bool((found.counts >= 2 * least).any()):
        return None  # without having asked for the sums that the widest are found by
    directions, widths = _widest(sums, found)
    widths = torch.where(found.counts >= 2 * least, widths, -1.0)
    wide = (widths > 0) & (widths >= widths.max() / 2)
    chosen = [one for one in widths.argsort(descending=True).tolist() if wide[one]][: most - len(found.counts)]
    if not chosen:
        return None
    offsets = (directions * widths.clamp_min(0.0).sqrt()[:, None])[chosen]
    halves = torch.cat([found.centroids, found.centroids[chosen] + offsets])
    halves[chosen] -= offsets
    moved = _settled(sums, replace(found, centroids=halves), least)
    return moved if len(moved.counts) > len(found.counts) else None


def _widest(sums: SumsOfVectors, found: Clusters) -> tuple[Tensor, Tensor]:
    """Return by cluster the direction (K, k) of largest variance, of length 1, and that variance (K,)."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(found.centroids.shape, generator=generator), dim=1)
    widths = torch.zeros(len(directions))
    for _ in range(POWER_STEPS):
        turned = sums.spread(found, directions) / found.counts[:, None].clamp_min(1.0)
        widths = turned.norm(dim=1)
        directions = turned / widths[:, None].clamp_min(1e-12)
    return directions, widths


def moments(vector: Tensor) -> Tensor:
    """Return 1, the vector and its squares, (2 k + 1,)."""
    return torch.cat([vector.new_ones(1), vector, vector.square()])


def spread(found: Clusters, directions: Tensor, vector: Tensor) -> Tensor:
    """Return (v - c) ((v - c) . q) at the place of the client's cluster, (K, k), q its row of ``directions``."""
    mine = found.nearest(vector)
    apart = found.standardized(vector) - found.centroids[mine]
    return torch.zeros_like(found.centroids).index_put((torch.tensor(mine),), apart * (apart @ directions[mine]))


def _settled(sums: SumsOfVectors, found: Clusters, least: int) -> Clusters:
    """Return the clusters after Lloyd's steps, without those that have too few clients."""
    for _ in range(LLOYD_STEPS):
        found = _moved(sums, found)
    while True:
        counts = _counted(sums, found)
        smallest = int(counts.argmin())
        if counts[smallest] >= least:
            return replace(found, counts=counts)
        kept = [one for one in range(len(counts)) if one != smallest]
        found = replace(found, centroids=found.centroids[kept], counts=counts[kept])


def _counted(sums: SumsOfVectors, found: Clusters) -> Tensor:
    """Return the clients (K,) of the clusters as they are published."""
    return sums.members(found)[:, 0]


def _moved(sums: SumsOfVectors, found: Clusters) -> Clusters:
    told = sums.members(found)
    counts = told[:, 0]
    means = torch.where(counts[:, None] > 0, told[:, 1:] / counts[:, None].clamp_min(1.0), found.centroids)
    return replace(found, centroids=means, counts=counts)


def membership(found: Clusters, vector: Tensor) -> Tensor:
    """Return 1 and the vector at the place of the client's cluster, (K, 1 + k)."""
    mine = torch.tensor(found.nearest(vector))
    told = torch.cat([vector.new_ones(1), found.standardized(vector)])
    return torch.zeros(len(found.centroids), len(told)).index_put((mine,), told)
