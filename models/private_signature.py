"""A signature under differential privacy: clipped moments with Gaussian noise, released once for one data set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.signature import Signature

BLOCKS = math.sqrt(8.0)
"""Joint L2 sensitivity of the three normalised sums: replacing a sample moves their entries by 2, sqrt 2 and sqrt 2."""


def private_signature(
    features: Tensor, labels: Tensor, *, num_classes: int, smoothing: float, clip: float, noise: float, seed: int
) -> Signature:
    """Describe a client's training samples so that one sample more or less different can hardly be told.

    The Gaussian mechanism (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", theorem A.1; exact
    epsilon by Balle and Wang, 2018) on the mean features, their mean squares and the label frequencies at once.
    Neighbours differ in one sample that is replaced; the number of samples is taken to be public. Standard deviations
    and frequencies are made of the noised moments, which costs no more.

    Args:
        features: (M, d) pooled features of at most M samples.
        labels: (n,) labels of all of them, n >= M.
        num_classes: number of classes of the task.
        smoothing: pseudo-count per class.
        clip: root mean square that a sample's features are clipped to; squares are clipped to sqrt 2 of what is left.
        noise: standard deviation of the noise in units of the sensitivity (the noise multiplier).
        seed: of the noise; it must be secret where the noise shall protect.
    """
    chance = torch.Generator().manual_seed(seed)
    count, width = features.shape
    largest = clip * math.sqrt(width)
    bounded = _within(features, largest)
    squares_bound = clip * largest * math.sqrt(2.0)
    squares = _within(bounded.square(), squares_bound)
    frequencies = torch.bincount(labels, minlength=num_classes).float() / labels.numel()
    step = noise * BLOCKS / count
    mean = bounded.mean(dim=0) + step * largest * _normal(width, chance)
    second = squares.mean(dim=0) + step * squares_bound * _normal(width, chance)
    told = (frequencies + step * _normal(num_classes, chance)).clamp_min(0.0)
    told = told / told.sum().clamp_min(1e-6)
    smooth = told * labels.numel() + smoothing
    return Signature(
        feature_mean=mean,
        feature_std=(second - mean.square()).clamp_min(0.0).sqrt(),
        class_frequencies=smooth / smooth.sum(),
        log_num_examples=math.log(labels.numel()),
    )


def _within(rows: Tensor, largest: float) -> Tensor:
    """Shorten rows (M, d) that are longer than ``largest``."""
    shortened: Tensor = rows * (largest / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return shortened


def _normal(size: int, chance: torch.Generator) -> Tensor:
    return torch.randn(size, generator=chance)
