"""How the class means of clients differ: the Gaussian model by which heads are generated, and how it is fitted.

The mean of class c at client i is y_ic = m_c + u_i + v_ic + noise / sqrt(n_ic), u ~ N(0, s_u R), v_c ~ N(0, s_v R),
R_ij = exp(-d_ij / length), alike for every coordinate (:mod:`models.personalization.head_generator`). Prediction is the
best linear unbiased one (kriging; Henderson 1975); s_u, s_v and length are those of the largest likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

VAGUE = 100.0
"""Variance of a class's mean over the federation, in units of the variance within classes: nothing is known of it."""
CLIENT_VARIANCES = (0.0, 0.01, 0.03, 0.1, 0.3)
CLASS_VARIANCES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LENGTHS = (0.3, 1.0, 3.0, 10.0)
MOST_OBSERVED, MOST_COMPARED = 600, 150
"""Pairs of client and class that the variances are estimated from at most, and clients of theirs."""


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

    def of_part(self, clients: int, classes: int, most: int) -> Observed:
        """Return about ``most`` rows: of all classes of some clients, or of some classes where that is too much.

        Args:
            clients, classes: how many there are; those that are kept lie evenly among them.
            most: rows that are wanted at most.
        """
        if len(self.client) <= most:
            return self
        kept = torch.isin(self.client, evenly(clients, MOST_COMPARED))
        if (rows := int(kept.sum())) > most:
            kept &= torch.isin(self.label, evenly(classes, max(2, classes * most // rows)))
        return self.of(kept.nonzero()[:, 0])

    def of(self, rows: Tensor) -> Observed:
        """Return the rows with these indices."""
        return Observed(self.client[rows], self.label[rows], self.means[rows], self.noise[rows])


@dataclass(frozen=True)
class Block:
    """Classes that are predicted together, from observations that tell something of them.

    Attributes:
        labels: (k,) the classes.
        observed: n rows.
        factor: (n, n) Cholesky factor of their covariance.
        solved: (n, d) that covariance's inverse times their means.
    """

    labels: Tensor
    observed: Observed
    factor: Tensor
    solved: Tensor

    @classmethod
    def of(cls, labels: Tensor, observed: Observed, variances: Variances, distances: Tensor) -> Block:
        """Factorise the covariance of ``observed``; ``distances`` (N, N) are those of all clients."""
        factor = torch.linalg.cholesky(covariance(variances, observed, distances))
        return cls(labels, observed, factor, torch.cholesky_solve(observed.means, factor))

    def expected(self, variances: Variances, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means (k, d) of a client's classes given the observations, and what they explain of the
        covariance (k, k) of these; ``distances`` (N,) are the client's."""
        cross = self._cross(variances, distances)
        return cross @ self.solved, cross @ torch.cholesky_solve(cross.mT, self.factor)

    def weights(self, variances: Variances, distances: Tensor) -> Tensor:
        """Return how much each observation counts in the means of :meth:`expected`, (k, n)."""
        return torch.cholesky_solve(self._cross(variances, distances).mT, self.factor).mT

    def _cross(self, variances: Variances, distances: Tensor) -> Tensor:
        """Return the covariance (k, n) of a client's class means and the observations."""
        v, alike = variances, variances.similarity(distances)[self.observed.client]
        same = (self.labels[:, None] == self.observed.label).double()
        return v.client * alike + (v.single * alike + VAGUE) * same


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


def likeliest(observed: Observed, distances: Tensor) -> Variances:
    """Return the variances of the largest likelihood out of a grid."""
    grid = [Variances(*one) for one in product(CLIENT_VARIANCES, CLASS_VARIANCES, LENGTHS)]
    return max(grid, key=lambda one: log_likelihood(one, observed, distances))


def evenly(total: int, most: int) -> Tensor:
    """Return at most ``most`` indices below ``total``, ascending and evenly spaced; all where there are no more."""
    return torch.arange(total) if total <= most else torch.linspace(0, total - 1, most).round().long()
