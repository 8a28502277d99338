"""How samples of a class spread at one client: a covariance of its own, shrunk to its neighbours' and the federation's.

A photograph's features spread in other directions than a sketch's. With the covariance S within classes of all
clients worth nu samples, and the scatter S_j of a client with f_j degrees of freedom counting for client i by how
alike the two are,

    Sigma_i = (nu S + sum_j R_ij S_j) / (nu + sum_j R_ij f_j),    R_ij = exp(-d_ij / length), R_ii = 1.

That is the mean of an inverse Wishart distribution around S, given the scatters (Haff 1980). nu and length are those
under which clients' scatters are likeliest when their own is left out (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from models.personalization.class_statistics import ClassStatistics

SAMPLES_PER_DIMENSION = (2.0, 5.0, 15.0, torch.inf)
"""What nu is chosen from; below one an inverse Wishart distribution has no mean."""
LENGTHS = (0.1, 0.3, 1.0, 3.0)
MOST_NEIGHBOURS = 64
"""Clients whose scatter counts for one client, the most alike."""
MOST_COMPARED, MOST_OPERATIONS = 24, 4e9
"""Clients by which nu and length are chosen at most, and cubes of the width that this may take."""


@dataclass(frozen=True)
class WithinClass:
    """The covariances of clients, in coordinates in which that of all clients and a ridge are the identity together.

    Attributes:
        statistics: of the N clients that are learned from.
        turn: (d, d) to these coordinates.
        ridge: (d,) diagonal of the ridge in them.
        samples: nu, of the federation's covariance; infinite where all clients have that one.
        length: squared distance of signatures over which clients cease to be alike.
    """

    statistics: Sequence[ClassStatistics]
    turn: Tensor
    ridge: Tensor
    samples: float = torch.inf
    length: float = 1.0

    @classmethod
    def fit(cls, statistics: Sequence[ClassStatistics], turn: Tensor, ridge: Tensor, distances: Tensor) -> WithinClass:
        """Choose nu and length; ``distances`` (N, N) are squared ones of signatures."""
        clients = _compared(len(statistics), len(turn))
        tried = [len(turn) * samples for samples in SAMPLES_PER_DIMENSION]
        likelihoods = dict.fromkeys(product(tried, LENGTHS), 0.0)
        for length in LENGTHS:
            model = cls(statistics, turn, ridge, length=length)
            for one in clients:
                own, freedom = model._scatter([statistics[one]], torch.ones(1, dtype=torch.float64))
                around = model._scatter(*model._neighbours(distances[one].index_fill(0, torch.tensor(one), torch.inf)))
                for samples in tried:
                    covariance = model._shrunk(around, samples)
                    likelihoods[samples, length] += _log_likelihood(covariance, own + freedom * ridge.diag(), freedom)
        samples, length = max(likelihoods, key=likelihoods.__getitem__)
        return cls(statistics, turn, ridge, samples, length)

    def precision(self, distances: Tensor, own: ClassStatistics | None = None) -> Tensor:
        """Return the inverse (d, d) of a client's covariance with the ridge.

        Args:
            distances: (N,) squared distances of its signature to those of the clients learned from; 0 for itself.
            own: what a client that is none of them says of itself.
        """
        if self.samples == torch.inf:
            return torch.eye(len(self.turn), dtype=torch.float64)
        neighbours, weights = self._neighbours(distances)
        if own is not None:
            neighbours, weights = [*neighbours, own], torch.cat([weights, weights.new_ones(1)])
        covariance = self._shrunk(self._scatter(neighbours, weights), self.samples)
        return torch.cholesky_inverse(torch.linalg.cholesky(covariance))

    def _neighbours(self, distances: Tensor) -> tuple[list[ClassStatistics], Tensor]:
        """Return the clients that are most alike, and how much each counts."""
        weights = torch.exp(-distances.double() / self.length)
        chosen = weights.topk(min(MOST_NEIGHBOURS, len(weights))).indices
        return [self.statistics[one] for one in chosen.tolist()], weights[chosen]

    def _scatter(self, parts: Sequence[ClassStatistics], weights: Tensor) -> tuple[Tensor, float]:
        """Return the weighted sum of scatters (d, d) in these coordinates, and of degrees of freedom."""
        rows = [weight.sqrt() * one.scatter.double() for one, weight in zip(parts, weights, strict=True)]
        rest = [weight * one.remainder.double() for one, weight in zip(parts, weights, strict=True)]
        freedom = sum(float(weight) * one.freedom for one, weight in zip(parts, weights, strict=True))
        factor = torch.cat([*rows, torch.stack(rest).sum(dim=0).sqrt().diag()]) @ self.turn
        return factor.mT @ factor, freedom

    def _shrunk(self, around: tuple[Tensor, float], samples: float) -> Tensor:
        """Return the covariance (d, d) of a client, the ridge included, given the scatter around it."""
        scatter, freedom = around
        if samples == torch.inf:
            return torch.eye(len(self.turn), dtype=torch.float64)
        federation = (1.0 - self.ridge).diag()
        covariance: Tensor = (samples * federation + scatter) / (samples + freedom) + self.ridge.diag()
        return covariance


def _compared(clients: int, width: int) -> list[int]:
    """Return the indices of clients that nu and length are chosen by, evenly spaced."""
    most = int(MOST_OPERATIONS / (len(SAMPLES_PER_DIMENSION) * len(LENGTHS) * width**3))
    return torch.linspace(0, clients - 1, min(clients, max(4, min(MOST_COMPARED, most)))).round().long().tolist()


def _log_likelihood(covariance: Tensor, scatter: Tensor, freedom: float) -> float:
    """Return the logarithm of the likelihood of a scatter (d, d) under a covariance, up to a constant."""
    factor = torch.linalg.cholesky(covariance)
    fits = torch.cholesky_solve(scatter, factor).diagonal().sum()
    return float(-freedom * factor.diagonal().log().sum() - 0.5 * fits)
