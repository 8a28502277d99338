"""Which clients' class statistics are believed by others: what few liars say must not cost everybody their head.

Cutting a lie to what is likely leaves a lie of that size at every liar, so a client that cannot be right is left out of
what others learn. It is then served as one that was never asked: from its own statistics and from what others tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.personalization.class_statistics import ClassStatistics, pooled_covariance

LARGEST_SPREAD, FARTHEST_CLIENT, FARTHEST_CLASS = 3.0, 4.0, 4.0
"""How much of a spread within classes, and how far away by most of its classes or by one, a client may be; in units of
the median client's. Honest clients of the digits are at up to 1.9, 1.9 and 3.0."""
CONTRADICTION = 4.0
"""How much more than the model expects two clients' classes may differ while one learns from the other."""
LEAST_CLIENTS = 4
LEAST_SPREAD = 0.01
"""Share of the mean variance below which a direction is not looked at by itself."""


def with_likely_spread(statistics: Sequence[ClassStatistics]) -> list[int]:
    """Return the indices of the clients whose spread within classes is like the others'.

    Along each direction of the spread of all clients, a client's variance is divided by that of the median client; the
    mean of these shares must not be above ``LARGEST_SPREAD``. Fewer than four clients are all believed, and so are all
    where half of them or more would be left out.
    """
    known = [index for index, one in enumerate(statistics) if one.freedom > 0]
    if len(known) < LEAST_CLIENTS:
        return list(range(len(statistics)))
    _, directions = torch.linalg.eigh(pooled_covariance([statistics[index] for index in known], LEAST_SPREAD))
    along = torch.stack([_variances(statistics[index], directions) for index in known])
    typical = along.median(dim=0).values
    shares = (along / typical.clamp_min(LEAST_SPREAD * float(typical.mean()) + 1e-12)).mean(dim=1)
    unlikely = {index for index, share in zip(known, shares.tolist(), strict=True) if share > LARGEST_SPREAD}
    return _without(len(statistics), unlikely)


def with_likely_means(clients: int, client: Tensor, label: Tensor, means: Tensor) -> list[int]:
    """Return the indices of the clients whose class means lie where others' do; few are judged as by spread.

    Args:
        clients: how many there are.
        client, label: (n,) of each class mean.
        means: (n, d) whitened.
    """
    ratios = distance_ratios(label, means)
    unlikely = set()
    for index in range(clients if clients >= LEAST_CLIENTS else 0):
        own = ratios[client == index]
        if len(own) > 1 and float(own.median()) > FARTHEST_CLIENT:
            unlikely.add(index)
    return _without(clients, unlikely)


def drawn_in(label: Tensor, means: Tensor) -> Tensor:
    """Return class means (n, d) with single ones that lie too far from their class's median moved towards it."""
    ratios = distance_ratios(label, means)
    drawn = means.clone()
    for row in (ratios > FARTHEST_CLASS).nonzero()[:, 0].tolist():
        centre = means[label == label[row]].median(dim=0).values
        drawn[row] = centre + FARTHEST_CLASS / ratios[row] * (means[row] - centre)
    return drawn


def distance_ratios(label: Tensor, means: Tensor) -> Tensor:
    """Return how far each class mean lies from its class's median, in units of the median distance, (n,).

    A class that fewer than three clients have tells nothing: 0.
    """
    ratios = torch.zeros(len(label), dtype=means.dtype)
    for one in label.unique().tolist():  # type: ignore[no-untyped-call]
        rows = (label == one).nonzero()[:, 0]
        if len(rows) > 2:
            distances = (means[rows] - means[rows].median(dim=0).values).norm(dim=1)
            ratios[rows] = distances / distances.median().clamp_min(1e-12)
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


def _variances(one: ClassStatistics, directions: Tensor) -> Tensor:
    """Return the variance within classes along each column of ``directions`` (d, d), (d,)."""
    scatter = (one.scatter @ directions).square().sum(dim=0) + one.remainder @ directions.square()
    variances: Tensor = scatter / one.freedom
    return variances


def _without(count: int, unlikely: set[int]) -> list[int]:
    return [one for one in range(count) if one not in unlikely or 2 * len(unlikely) >= count]
