"""The geometric median of vectors that are known by their inner products alone.

The weighted geometric median minimises sum_i w_i ||x_i - v||; it stays bounded while less than half of the weight is
corrupted (Minsker 2015; as robust federated aggregation, RFA: Pillutla, Kakade, Harchaoui 2022, algorithm 2, smoothed
Weiszfeld). v lies in the hull of the x_i, so weights over clients stand for it and distances need inner products only.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 100
TOLERANCE = 1e-9
SMOOTHING = 1e-6


def weights_to_median(gram: Tensor, shares: Tensor) -> Tensor:
    """Return weights alpha >= 0 with sum 1 such that sum_i alpha_i x_i is the weighted geometric median.

    Args:
        gram: inner products of the N vectors, (N, N), float64.
        shares: positive weights of the vectors, (N,).
    """
    base = shares / shares.sum()
    least = SMOOTHING * gram.diagonal().clamp(min=0).mean().sqrt().clamp(min=1e-30)
    weights = base
    for _ in range(ITERATIONS):
        new = base / _distances(gram, weights).clamp(min=least)
        new = new / new.sum()
        if torch.allclose(new, weights, rtol=0, atol=TOLERANCE):
            return new
        weights = new
    return weights


def distances_to_median(gram: Tensor, shares: Tensor) -> Tensor:
    """Return ||x_i - v|| for the weighted geometric median v, (N,)."""
    return _distances(gram, weights_to_median(gram, shares))


def farthest(distances: Tensor, count: int) -> set[int]:
    """Return the indices of the ``count`` largest distances; of equal ones the first."""
    return set(torch.argsort(distances, descending=True, stable=True)[:count].tolist())


def _distances(gram: Tensor, weights: Tensor) -> Tensor:
    along = gram @ weights
    return (gram.diagonal() - 2 * along + weights @ along).clamp(min=0).sqrt()
