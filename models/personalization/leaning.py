"""Whom a generated head leans on: how much of its class means comes from the client itself and from each other client.

The prediction of :mod:`models.personalization.head_generator` is linear in the observed class means, so it can be
decomposed exactly. With the fitted variances held fixed, shifting all class means of client j by delta shifts the
predicted class means of a client by w_j delta, on average over the classes; w_j is the weight reported here. As in any
kriging, weights can be negative. They sum to nearly 1, since the federation's mean is hardly shrunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.personalization.class_means import Observed
from models.personalization.class_statistics import ClassStatistics
from models.personalization.head_generator import HeadGenerator


@dataclass(frozen=True)
class Leaning:
    """What the class means of a head are made of.

    Attributes:
        own: weight of the client's own statistics; 0 where it sent none or the generator was fitted to it.
        others: client-id -> weight of its statistics, for the clients that the generator was fitted to.
        share: how much of the client's head is made from these class means; the rest is the anchor's head.
    """

    own: float
    others: Mapping[str, float]
    share: float = 1.0


def leaning(generator: HeadGenerator, name: str, distances: Tensor, own: ClassStatistics | None) -> Leaning:
    """Return whom the head leans on that :meth:`HeadGenerator.head` makes of the same arguments.

    Args:
        generator: fitted to N clients.
        name: client-id of the client that the head is for.
        distances: (N,) squared distances of its signature to those of the clients fitted to.
        own: its class statistics; None where it sent none.
    """
    distances, own = generator.heard(name, distances, own)
    weights = _of_clients(generator, distances)
    mine = 0.0
    if own is not None:
        _, spread = generator.expected(distances)
        gain = _followed(spread, generator.whitening.observed([own]))
        weights, mine = weights - gain @ weights[own.counts > 0], float(gain.sum(dim=1).mean())
    return Leaning(mine, dict(zip(generator.names, weights.mean(dim=0).tolist(), strict=True)))


def _followed(spread: Tensor, own: Observed) -> Tensor:
    """Return by how much the class means, of covariance ``spread``, follow the client's own observations, (C, s)."""
    seen = own.label
    followed: Tensor = torch.linalg.solve(spread[seen][:, seen] + torch.diag(own.noise), spread[seen]).mT
    return followed


def _of_clients(generator: HeadGenerator, distances: Tensor) -> Tensor:
    """Return by how much of a shift of client j the mean of class c moves, (C, N), before a client's own is heard."""
    weights = torch.zeros(generator.num_classes, len(generator.names), dtype=torch.float64)
    for block in generator.blocks:
        told = torch.zeros(len(block.labels), len(generator.names), dtype=torch.float64)
        told.index_add_(1, block.observed.client, block.weights(generator.variances, distances))
        weights[block.labels] = told
    return weights
