"""Find implausible class statistics: a few malicious clients must not spoil the heads of all others.

Clipping a false value to a plausible size would still leave an error of that size, so a client with implausible
statistics is excluded from what the others learn from. It still gets a head, as a client outside the fit does: from its
own statistics and from the other clients'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.personalization.class_statistics import ClassStatistics, pooled_covariance

LARGEST_SPREAD, FARTHEST_CLIENT, FARTHEST_CLASS = 3.0, 4.0, 4.0
"""Limits of a client, in units of the median client: its spread within classes, the median distance of its class means,
and the distance of a single class mean. Honest clients of the digits reach 1.9, 1.9 and 3.0."""
WIDEST_DIRECTION = 6.0
"""How much more than the median client's a client's widest direction may be, each against the median spread along it.
Honest clients of PACS and the digits are at up to 3.5."""
CONTRADICTION = 4.0
"""How much more than the model expects two clients' classes may differ while one learns from the other."""
LEAST_CLIENTS = 4
LEAST_SPREAD = 0.01
"""Share of the mean variance below which a direction is not looked at by itself."""


def with_likely_spread(statistics: Sequence[ClassStatistics]) -> list[int]:
    """Return the indices of the clients whose spread within classes is like the others'.

    Along each direction of the spread of all clients, a client's variance is divided by that of the median client; the
    mean of these shares must not be above ``LARGEST_SPREAD``. Nor may all of a client's spread lie in one direction
    (``WIDEST_DIRECTION``), which would take from its neighbours' heads what tells classes apart there. Fewer than four
    clients are all believed, and so are all where half of them or more would be left out.
    """
    known = [index for index, one in enumerate(statistics) if one.freedom > 0]
    if len(known) < LEAST_CLIENTS:
        return list(range(len(statistics)))
    values, directions = torch.linalg.eigh(pooled_covariance([statistics[index] for index in known], LEAST_SPREAD))
    widest = _widest([statistics[index] for index in known], directions * values.rsqrt())
    along = torch.stack([_variances(statistics[index], directions) for index in known])
    typical = along.median(dim=0).values
    shares = (along / typical.clamp_min(LEAST_SPREAD * float(typical.mean()) + 1e-12)).mean(dim=1)
    cannot_be = (shares > LARGEST_SPREAD) | (widest > WIDEST_DIRECTION * widest.median())
    unlikely = {index for index, one in zip(known, cannot_be.tolist(), strict=True) if one}
    return _without(len(statistics), unlikely)


def with_likely_means(clients: int, client: Tensor, label: Tensor, means: Tensor, noise: Tensor) -> list[int]:
    """Return the indices of the clients whose class means lie where others' do; few are judged as by spread.

    Args:
        clients: how many there are.
        client, label: (n,) of each class mean.
        means: (n, d) whitened.
        noise: (n,) their variance by the number of samples.
    """
    ratios = distance_ratios(label, means, noise)
    unlikely = set()
    for index in range(clients if clients >= LEAST_CLIENTS else 0):
        own = ratios[client == index]
        if len(own) > 1 and float(own.median()) > FARTHEST_CLIENT:
            unlikely.add(index)
    return _without(clients, unlikely)


def drawn_in(label: Tensor, means: Tensor, noise: Tensor) -> Tensor:
    """Return class means (n, d) with single ones that lie too far from their class's median moved towards it."""
    ratios = distance_ratios(label, means, noise)
    drawn = means.clone()
    for row in (ratios > FARTHEST_CLASS).nonzero()[:, 0].tolist():
        centre = means[label == label[row]].median(dim=0).values
        drawn[row] = centre + FARTHEST_CLASS / ratios[row] * (means[row] - centre)
    return drawn


def distance_ratios(label: Tensor, means: Tensor, noise: Tensor) -> Tensor:
    """Return how far each class mean lies from its class's median, in units of the median distance, (n,).

    The unit is no smaller than what chance alone makes of the median client's samples: where most clients hold the same
    data, the others are not far away for that. A class that fewer than three clients have tells nothing: 0.
    """
    ratios = torch.zeros(len(label), dtype=means.dtype)
    for one in label.unique().tolist():  # type: ignore[no-untyped-call]
        rows = (label == one).nonzero()[:, 0]
        if len(rows) > 2:
            distances = (means[rows] - means[rows].median(dim=0).values).norm(dim=1)
            by_chance = float((means.shape[1] * noise[rows].median()).sqrt())
            ratios[rows] = distances / distances.median().clamp_min(max(by_chance, 1e-12))
    return ratios


def contradicting(differences: Tensor, expected: Tensor, client: Tensor, clients: int) -> Tensor:
    """Return which clients show classes so unlike a newcomer's own that it must not learn from them, boolean (N,).

    Args:
        differences: (n,) mean squared differences of class means that both have.
        expected: (n,) what the model expects of them, given how alike the signatures are.
        client: (n,) the other client of each.
        clients: N.
    """
    count = torch.zeros(clients, dtype=expected.dtype).index_add_(0, client, torch.ones_like(expected))
    total = torch.zeros(clients, dtype=expected.dtype).index_add_(0, client, differences / expected.clamp_min(1e-12))
    mean = total / count.clamp_min(1.0)
    if not bool((count > 0).any()):
        return torch.zeros(clients, dtype=torch.bool)
    usual = float(mean[count > 0].median())
    contradicts: Tensor = mean > CONTRADICTION * max(1.0, usual)
    return contradicts


def _widest(statistics: Sequence[ClassStatistics], turn: Tensor) -> Tensor:
    """Return how much wider clients spread where they do most than the median client does there, (N,).

    That is the first direction of the scatter's factor or the axis with the largest remainder, both whitened by
    ``turn`` (d, d), against (1 + sqrt(d / f))^2, which chance alone makes of f degrees of freedom (Marchenko & Pastur
    1967).
    """
    axes = torch.eye(len(turn))
    directions = []
    for one in statistics:
        first = torch.linalg.svd(one.scatter @ turn, full_matrices=False).Vh[0]
        directions += [turn @ first, axes[int((one.remainder * turn.square().sum(dim=1)).argmax())]]
    along = torch.stack([_variances(one, torch.stack(directions, dim=1)) for one in statistics])
    own = torch.stack([row[2 * place : 2 * place + 2] for place, row in enumerate(along)])
    ratios = (own / along.median(dim=0).values.view(-1, 2).clamp_min(1e-12)).amax(dim=1)
    chance = torch.tensor([(1 + (len(turn) / one.freedom) ** 0.5) ** 2 for one in statistics])
    return ratios / chance


def _variances(one: ClassStatistics, directions: Tensor) -> Tensor:
    """Return the variance within classes along each column of ``directions`` (d, d), (d,)."""
    scatter = (one.scatter @ directions).square().sum(dim=0) + one.remainder @ directions.square()
    variances: Tensor = scatter / one.freedom
    return variances


def _without(count: int, unlikely: set[int]) -> list[int]:
    return [one for one in range(count) if one not in unlikely or 2 * len(unlikely) >= count]
