"""A head for a client in closed form: what its classes look like, learned from itself, its neighbours, the federation.

The mean of class c at client i, in coordinates in which samples of a class spread with unit variance, is

    y_ic = m_c + u_i + v_ic + noise / sqrt(n_ic),    u ~ N(0, s_u R),  v_c ~ N(0, s_v R),  R_ij = exp(-d_ij / length):

a mean over the federation, what all classes of a client share, and what one class has of its own; clients with close
signatures are alike in both. The best linear unbiased prediction of m_c + u_i + v_ic (kriging; Henderson 1975) shrinks
a client with few samples to its neighbours and those to the federation, class by class, and is defined for classes
that the client has no sample of. s_u, s_v and length are those of the largest likelihood (empirical Bayes; Robbins
1956). The head is the linear discriminant of the predicted means, without the class prior. That is estimated alike:
the class frequencies of clients are drawn from one Dirichlet distribution, whose concentration has the largest
likelihood, and a client's own are their mean given its counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from models.personalization.class_statistics import ClassStatistics, bounded, pooled_covariance

RIDGE = 0.01
"""Share of the mean variance within classes that is added to every direction before it is inverted."""
VAGUE = 100.0
"""Variance of a class's mean over the federation, in units of the variance within classes: nothing is known of it."""
CLIENT_VARIANCES = (0.0, 0.01, 0.03, 0.1, 0.3)
CLASS_VARIANCES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LENGTHS = (0.3, 1.0, 3.0, 10.0)
CONCENTRATIONS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MOST_OBSERVED = 600
"""Pairs of client and class that the variances are estimated from at most."""


@dataclass(frozen=True)
class Variances:
    """What class means differ by between clients, in units of the variance within classes.

    Attributes:
        client: s_u, of what all classes of a client share.
        single: s_v, of what one class of a client has of its own.
        length: squared distance of signatures over which clients cease to be alike.
    """

    client: float
    single: float
    length: float

    def similarity(self, distances: Tensor) -> Tensor:
        """Return R for squared distances of any shape."""
        return torch.exp(-distances / self.length)


@dataclass(frozen=True)
class Observed:
    """Class means of clients, a row for every class of a client that has samples.

    Attributes:
        client: (n,) index of the client.
        label: (n,) class.
        means: (n, d) mean feature, whitened and centred.
        noise: (n,) variance of the mean, by the number of samples.
    """

    client: Tensor
    label: Tensor
    means: Tensor
    noise: Tensor

    def of_first(self, most: int) -> Observed:
        """Return the rows of the first clients, about ``most`` rows."""
        last = int(self.client[min(most, len(self.client)) - 1])
        kept = self.client <= last
        return Observed(self.client[kept], self.label[kept], self.means[kept], self.noise[kept])


@dataclass(frozen=True)
class Whitening:
    """Features in which samples of a class spread with about unit variance: (x - centre) @ turn."""

    centre: Tensor
    turn: Tensor
    spread: float

    @classmethod
    def of(cls, statistics: Sequence[ClassStatistics]) -> Whitening:
        """Fit to the statistics of clients; raises ValueError where nothing is known of the spread."""
        plain = pooled_covariance(statistics, 0.0).double()
        values, directions = torch.linalg.eigh(plain + RIDGE * plain.diagonal().mean() * torch.eye(len(plain)))
        turn = directions * values.rsqrt()
        spread = float((turn.mT @ plain @ turn).diagonal().mean())
        total = torch.stack([one.sums for one in statistics]).sum(dim=(0, 1))
        count = torch.stack([one.counts for one in statistics]).sum()
        return cls((total / count).double(), turn, spread)

    def observed(self, statistics: Sequence[ClassStatistics]) -> Observed:
        """Return the class means of clients in these coordinates."""
        counts = torch.stack([one.counts for one in statistics]).double()
        client, label = counts.nonzero(as_tuple=True)
        sums, taken = torch.stack([one.sums for one in statistics]).double(), counts[client, label]
        means = (sums[client, label] / taken[:, None] - self.centre) @ self.turn
        return Observed(client, label, means, self.spread / taken)

    def head(self, means: Tensor) -> Tensor:
        """Return the linear discriminant (C, d + 1) of whitened means (C, d), for features as they are."""
        weight = means @ self.turn.mT
        bias = -0.5 * means.square().sum(dim=1) - weight @ self.centre
        head = torch.cat([weight, bias[:, None]], dim=1)
        return (head - head.mean(dim=0)).float()


@dataclass(frozen=True)
class HeadGenerator:
    """Predicts the class means of clients from the statistics of others and their own.

    Attributes:
        whitening: the coordinates.
        variances: of the model.
        observed: class means of the N clients that it was fitted to.
        names: their client-ids.
        num_classes: C.
        factor: (n, n) Cholesky factor of the covariance of all observations.
        solved: (n, d) that covariance's inverse times the observations.
        pseudo_counts: (C,) parameters of the Dirichlet distribution of class frequencies.
    """

    whitening: Whitening
    variances: Variances
    observed: Observed
    names: Sequence[str]
    num_classes: int
    factor: Tensor
    solved: Tensor
    pseudo_counts: Tensor

    @classmethod
    def fit(cls, statistics: Mapping[str, ClassStatistics], distances: Tensor) -> HeadGenerator:
        """Fit to clients.

        Args:
            statistics: by client-id.
            distances: (N, N) squared distances of their signatures, in the order of ``statistics``.

        Raises:
            ValueError: no client has two samples of a class.
        """
        parts = bounded(list(statistics.values()))
        whitening = Whitening.of(parts)
        observed = whitening.observed(parts)
        variances = likeliest(observed.of_first(MOST_OBSERVED), distances.double())
        factor = torch.linalg.cholesky(covariance(variances, observed, distances.double()))
        solved = torch.cholesky_solve(observed.means, factor)
        counts = torch.stack([one.counts for one in parts])
        return cls(
            whitening, variances, observed, list(statistics), counts.shape[1], factor, solved, pseudo_counts(counts)
        )

    def head(self, name: str, distances: Tensor, own: ClassStatistics | None) -> Tensor:
        """Return the head (C, d + 1) of a client.

        Args:
            name: its client-id.
            distances: (N,) squared distances of its signature to those of the clients fitted to.
            own: its class statistics, which count for a client that was not fitted to; None where it sent none.
        """
        return self.whitening.head(self.expected_means(name, distances, own))

    def expected_means(self, name: str, distances: Tensor, own: ClassStatistics | None) -> Tensor:
        """Return the whitened means (C, d) of a client's classes given all that is known; arguments as of ``head``."""
        means, spread = self._expected(distances.double())
        if own is not None and name not in self.names:
            means = self._updated(means, spread, self.whitening.observed([own]))
        return means

    def log_frequencies(self, own: ClassStatistics) -> Tensor:
        """Return the logarithm of a client's expected class frequencies (C,), given its counts."""
        return torch.log((own.counts + self.pseudo_counts) / (own.counts + self.pseudo_counts).sum())

    def _expected(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means (C, d) of a client's classes given all observations, and their covariance (C, C)."""
        v, labels = self.variances, torch.arange(self.num_classes)
        alike = v.similarity(distances)[self.observed.client]
        same = (labels[:, None] == self.observed.label).double()
        cross = v.client * alike + (v.single * alike + VAGUE) * same
        prior = v.client + (v.single + VAGUE) * torch.eye(self.num_classes, dtype=torch.float64)
        explained = cross @ torch.cholesky_solve(cross.mT, self.factor)
        return cross @ self.solved, prior - explained

    def _updated(self, means: Tensor, spread: Tensor, own: Observed) -> Tensor:
        """Return ``means`` given the client's own observations as well (Bayes' rule for Gaussians)."""
        seen = own.label
        gain = torch.linalg.solve(spread[seen][:, seen] + torch.diag(own.noise), own.means - means[seen])
        updated: Tensor = means + spread[:, seen] @ gain
        return updated


def covariance(variances: Variances, observed: Observed, distances: Tensor) -> Tensor:
    """Return the covariance (n, n) of one coordinate of all observations under the model."""
    alike = variances.similarity(distances)[observed.client][:, observed.client]
    same = (observed.label[:, None] == observed.label).double()
    return variances.client * alike + (variances.single * alike + VAGUE) * same + torch.diag(observed.noise)


def log_likelihood(variances: Variances, observed: Observed, distances: Tensor) -> float:
    """Return the logarithm of the likelihood of all coordinates of all observations, up to a constant."""
    factor = torch.linalg.cholesky(covariance(variances, observed, distances))
    residual = torch.linalg.solve_triangular(factor, observed.means, upper=False)
    return float(-0.5 * residual.square().sum() - observed.means.shape[1] * factor.diagonal().log().sum())


def pseudo_counts(counts: Tensor) -> Tensor:
    """Return the parameters (C,) of the Dirichlet distribution that class counts (N, C) are most likely drawn from.

    Their mean is that of all samples; the concentration is the likeliest of a grid (Dirichlet-multinomial).
    """
    counts = counts.double()
    mean = (counts.sum(dim=0) + 1.0) / (counts.sum() + counts.shape[1])

    def fit(concentration: float) -> float:
        prior, total = concentration * mean, torch.tensor(concentration, dtype=torch.float64)
        by_class = torch.lgamma(prior + counts) - torch.lgamma(prior)
        return float((by_class.sum(dim=1) + torch.lgamma(total) - torch.lgamma(total + counts.sum(dim=1))).sum())

    parameters: Tensor = max(CONCENTRATIONS, key=fit) * mean
    return parameters.float()


def likeliest(observed: Observed, distances: Tensor) -> Variances:
    """Return the variances of the largest likelihood out of a grid."""
    grid = [Variances(*one) for one in product(CLIENT_VARIANCES, CLASS_VARIANCES, LENGTHS)]
    return max(grid, key=lambda one: log_likelihood(one, observed, distances))
