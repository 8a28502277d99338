"""Class statistics in the space of the anchor's logits: few enough numbers to publish under noise at client level.

In d features a federation's class means and scatter are C d + d (d + 1) / 2 numbers. The anchor's head maps features to
C logits, of which C - 1 directions matter, and is itself learned from sums. There the statistics are C (C - 1) +
C (C - 1) / 2 numbers, and clients' heads are still their own: a client predicts its class means in that space from the
published ones and its own samples, as :mod:`models.sums.local_head` does in the space of features.

Everything that a client tells is a mean over its samples, cut off at a public length, so that a client of many samples
counts for no more than another. What noise does to a published mean is known; it counts as if the mean were of fewer
samples, so that clients lean on it less (:meth:`LogitStatistics.as_class_statistics`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.head_generator import HeadGenerator
from models.sums.clusters import Clusters
from models.sums.group_statistics import GroupStatistics, Spread, deviations, dirichlet_parameters
from models.sums.local_head import PublicHeads

LONGEST = 8.0
"""Largest length of a sample's centred logits, in nats; longer ones are shortened."""
MOST_COUNTED = 256.0
"""Samples of a client that its count goes up to."""
FLOOR = 0.02
"""Least variance in a direction within classes, as a share of the mean one."""


@dataclass(frozen=True)
class LogitSpace:
    """Centred logits of a head, in C - 1 coordinates.

    Attributes:
        weight: (C - 1, d).
        bias: (C - 1,).
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, head: Tensor) -> LogitSpace:
        """Return the space of a head (C, d + 1)."""
        directions = centred_directions(len(head))
        return cls(directions @ head[:, :-1].double(), directions @ head[:, -1].double())

    def features(self, features: Tensor) -> Tensor:
        """Return the coordinates (n, C - 1) of features (n, d), of length ``LONGEST`` at most."""
        told = features.double() @ self.weight.mT + self.bias
        shortened: Tensor = told * (LONGEST / told.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1.0)
        return shortened

    def statistics(self, features: Tensor, labels: Tensor) -> ClassStatistics:
        """Return the class statistics of samples in this space."""
        width = len(self.bias)
        return compute_class_statistics(self.features(features), labels, num_classes=width + 1, rank=width)

    def head(self, inner: Tensor) -> Tensor:
        """Return as a head of features (C, d + 1) what is one of these coordinates (C, C)."""
        inner = inner.double()
        weight, bias = inner[:, :-1] @ self.weight, inner[:, :-1] @ self.bias + inner[:, -1]
        return torch.cat([weight, bias[:, None]], dim=1).float()


def centred_directions(classes: int) -> Tensor:
    """Return an orthonormal basis (C - 1, C) of the vectors whose entries sum to 0 (Helmert's)."""
    rows = torch.tril(torch.ones(classes, classes, dtype=torch.float64), diagonal=-1)[1:]
    below = rows.sum(dim=1)
    rows[torch.arange(classes - 1), torch.arange(1, classes)] = -below
    return rows / (below * (below + 1)).sqrt()[:, None]


def packed(matrix: Tensor) -> Tensor:
    """Return a symmetric matrix (k, k) as a vector of the same length (norm), (k (k + 1) / 2,)."""
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column] * torch.where(row == column, 1.0, 2**0.5).to(matrix.dtype)


def unpacked(vector: Tensor, width: int) -> Tensor:
    """Inverse of :func:`packed`."""
    row, column = torch.triu_indices(width, width)
    matrix = vector.new_zeros(width, width)
    matrix[row, column] = matrix[column, row] = vector / torch.where(row == column, 1.0, 2**0.5).to(vector.dtype)
    return matrix


def logit_contribution(one: ClassStatistics) -> dict[str, Tensor]:
    """Return what a client tells of its classes: means over its samples, none longer than a public bound.

    Args:
        one: its class statistics in a :class:`LogitSpace`.
    """
    counts = one.counts.double()
    samples, freedom = counts.sum().clamp_min(1.0), max(one.freedom, 1.0)
    frequencies = counts / samples
    pairs = (counts * (counts - 1)).sum() / (samples * (samples - 1)).clamp_min(1.0)
    return {
        "frequencies": frequencies,
        "sums": one.sums.double() / samples,
        "scatter": packed(one.dense_scatter().double()) / freedom,
        "told": torch.tensor([float(one.freedom > 0)]),
        "samples": counts.sum().clamp(max=MOST_COUNTED)[None],
        "agreeing": pairs[None],
    }


def logit_units(classes: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """Return of every part of a contribution its shape, and what of it has length 1."""
    width = classes - 1
    return {
        "frequencies": ((classes,), 2.0),
        "sums": ((classes, width), LONGEST),
        "scatter": ((width * (width + 1) // 2,), LONGEST**2 / 2),
        "told": ((1,), 4.0),
        "samples": ((1,), 4.0 * MOST_COUNTED),
        "agreeing": ((1,), 4.0),
    }


@dataclass(frozen=True)
class LogitStatistics:
    """What is published of the classes of all clients together; a function of one noised sum.

    Attributes:
        frequencies: (C,) mean frequencies over clients.
        means: (C, C - 1); zero where the noise leaves nothing of a class.
        variance: (C - 1, C - 1) of samples within the classes of a client.
        effective: (C,) of how many samples a mean would be to be as uncertain as it is.
        agreeing: mean share of pairs of a client's samples that are of one class.
    """

    frequencies: Tensor
    means: Tensor
    variance: Tensor
    effective: Tensor
    agreeing: float

    @classmethod
    def of(cls, sums: Mapping[str, Tensor], clients: int, noise: float) -> LogitStatistics:
        """Read a sum over ``clients``, whose noise has the standard deviation ``noise`` in units of one client."""
        units = {name: unit for name, (_, unit) in logit_units(len(sums["frequencies"])).items()}
        shares = sums["frequencies"].double()
        deviation = noise * units["frequencies"]
        known = shares > max(2 * deviation, 1e-9)
        shares = shares.clamp_min(1e-9)
        means = torch.where(known[:, None], sums["sums"].double() / shares[:, None], 0.0)
        variance = _positive(sums, noise * units["scatter"])
        samples = float(sums["samples"].clamp_min(clients)) * shares / clients
        uncertain = 1 / samples + (noise * units["sums"] / shares).square() / float(variance.diagonal().mean())
        effective = torch.where(known, 1 / uncertain, 0.0)
        agreeing = float(sums["agreeing"]) / clients
        return cls(shares.clamp_min(0.0) / clients, means, variance, effective, min(max(agreeing, 0.0), 1.0))

    def tensors(self) -> dict[str, Tensor]:
        """Return all parts by name."""
        named = {name: getattr(self, name).float() for name in ("frequencies", "means", "variance", "effective")}
        return {**named, "agreeing": torch.tensor([self.agreeing])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LogitStatistics:
        """Inverse of :meth:`tensors`; raises KeyError."""
        parts = {name: tensors[name].double() for name in ("frequencies", "means", "variance", "effective")}
        return cls(**parts, agreeing=float(tensors["agreeing"][0]))

    def as_class_statistics(self) -> ClassStatistics:
        """Return statistics of one client that would be as certain."""
        counts = self.effective.float()
        freedom = max(float(counts.sum() - (counts > 0).sum()), 1.0)
        values, directions = torch.linalg.eigh(self.variance * freedom)
        factor = values.clamp_min(0.0).sqrt()[:, None] * directions.mT
        return ClassStatistics(
            counts, (counts[:, None] * self.means).float(), factor.float(), torch.zeros(len(self.variance))
        )

    @functools.cached_property
    def generator(self) -> HeadGenerator:
        """What predicts a client's class means; raises ValueError where the noise leaves nothing of any class."""
        return HeadGenerator.fit({"all": self.as_class_statistics()}, torch.zeros(1, 1))

    def head(self, own: ClassStatistics, spread: Spread | None) -> Tensor:
        """Return the head (C, C) of a client in these coordinates, without the class prior.

        Args:
            own: its class statistics, in the same space.
            spread: by how much clients differ from the published means.
        """
        alone, group = Clusters(*(torch.zeros(1), torch.ones(1), torch.zeros(1, 1), torch.ones(1))), self._group()
        return PublicHeads(alone, group, self.generator, spread).head(torch.zeros(1), own)

    def _group(self) -> GroupStatistics:
        return GroupStatistics((self.as_class_statistics(),), torch.ones(1), self.agreeing)

    def log_frequencies(self, own: ClassStatistics) -> Tensor:
        """Return the logarithm of a client's expected class frequencies (C,), given its counts."""
        smoothed = self.frequencies + 1e-3
        expected = own.counts + dirichlet_parameters(smoothed / smoothed.sum(), self.agreeing)
        return torch.log(expected / expected.sum()).float()


def _positive(sums: Mapping[str, Tensor], deviation: float) -> Tensor:
    """Return the mean of a noised sum of scatters, with no eigenvalue that the noise alone could have made."""
    width = sums["sums"].shape[1]
    clients = float(sums["told"].clamp_min(1.0))
    values, directions = torch.linalg.eigh(unpacked(sums["scatter"].double(), width) / clients)
    edge = deviation / clients * (2 * width) ** 0.5  # 2 s sqrt(k): entries off the diagonal have s = deviation / sqrt 2
    least = max(edge / 2, FLOOR * float(values.clamp_min(0.0).mean()), 1e-6)
    floored: Tensor = directions @ values.clamp_min(least).diag() @ directions.mT
    return floored


def logit_deviations(public: LogitStatistics, own: ClassStatistics) -> dict[str, Tensor]:
    """Return how far a client's class means lie from the published ones: means over its classes, and over pairs.

    Args:
        public: the published statistics.
        own: the client's, in the same space.
    """
    far = ClassStatistics(torch.full_like(own.counts, torch.inf), own.sums, own.scatter, own.remainder)
    squares, classes, products, pairs = deviations(public.generator, own, far, torch.zeros(1)).double().tolist()
    told = [squares / max(classes, 1.0), float(classes > 0), products / max(pairs, 1.0), float(pairs > 0)]
    return {"deviations": torch.tensor(told, dtype=torch.float64)}


def logit_spread(sums: Mapping[str, Tensor]) -> Spread:
    """Read the sum of :func:`logit_deviations`."""
    return Spread.of(sums["deviations"])
