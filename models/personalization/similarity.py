"""What clients are compared by: signatures as vectors of three groups of coordinates, and how much each counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.personalization.signature import Projection, Signature

METRIC = (1.0, 0.02, 0.02)
"""How much feature means, feature deviations and class frequencies count in the squared distance of two clients."""


def signature_vector(signature: Signature) -> Tensor:
    """Return what clients are compared by, shape (k,): feature means, feature deviations, log class frequencies."""
    return torch.cat([signature.feature_mean, signature.feature_std, signature.class_frequencies.log()])


def vector_groups(signature: Signature) -> Tensor:
    """Return the group of each coordinate of a signature vector (k,): 0 means, 1 deviations, 2 frequencies."""
    width, classes = signature.feature_mean.numel(), signature.class_frequencies.numel()
    return torch.tensor([0] * width + [1] * width + [2] * classes)


def coordinate_weights(groups: Tensor, metric: Sequence[float] = METRIC) -> Tensor:
    """Return how much each coordinate counts (k,): the weight of its group over the number of the group's coordinates.

    Args:
        groups: (k,) group of each coordinate, integers from 0.
        metric: weight of each group.
    """
    return torch.tensor(metric)[groups] / torch.bincount(groups)[groups]


def fit_projection(vectors: Tensor, groups: Tensor, size: int) -> Projection:
    """Return the projection of signature vectors (N, k) to at most ``size`` numbers, coordinates counting by METRIC."""
    return Projection.fit(vectors, coordinate_weights(groups).sqrt(), size)
