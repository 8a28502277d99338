"""The signature: a few hundred numbers that describe a client's data, computed with the frozen backbone.

A private signature is made of clipped moments with Gaussian noise, released once for one data set. Embeddings, which
clients are compared by and which the generator reads, are signatures that are standardised, or projected as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.noise import Draw, noised


@dataclass(frozen=True)
class Signature:
    """Statistics of a client's training samples.

    Attributes:
        feature_mean: (d,) mean of the pooled features of the frozen backbone.
        feature_std: (d,) their standard deviation (0 where there is one sample only).
        class_frequencies: (classes,) smoothed class frequencies pi, positive, sum 1.
        log_num_examples: natural logarithm of the number of training samples.
    """

    feature_mean: Tensor
    feature_std: Tensor
    class_frequencies: Tensor
    log_num_examples: float

    def vector(self) -> Tensor:
        """Return all numbers as one vector of 2 d + classes + 1 entries."""
        count = torch.tensor([self.log_num_examples])
        return torch.cat([self.feature_mean, self.feature_std, self.class_frequencies, count])

    def digest(self) -> str:
        """Return a short hash of the numbers at half precision, the same before and after they travelled."""
        half = self.vector().to(torch.float16).numpy().tobytes()
        return hashlib.blake2b(half, digest_size=8).hexdigest()

    @classmethod
    def from_vector(cls, vector: Tensor, num_classes: int) -> Signature:
        """Inverse of :meth:`vector`.

        Raises:
            ValueError: the length does not fit, a number is not finite, or the frequencies are none.
        """
        width, odd = divmod(vector.numel() - num_classes - 1, 2)
        if vector.dim() != 1 or odd or width < 1:
            raise ValueError(f"a signature of {num_classes} classes cannot have shape {tuple(vector.shape)}")
        if not bool(torch.isfinite(vector).all()):
            raise ValueError("a signature must be finite, got NaN or infinity")
        mean, std, frequencies, count = torch.split(vector, [width, width, num_classes, 1])
        if bool((frequencies <= 0).any()) or abs(float(frequencies.sum()) - 1) > 0.01:
            raise ValueError("the class frequencies of a signature must be positive and sum to 1")
        return cls(mean, std, frequencies, float(count))


def class_frequencies(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return pi_c = (n_c + smoothing) / (n + classes * smoothing), shape (classes,)."""
    counts = torch.bincount(labels, minlength=num_classes).float() + smoothing
    return counts / counts.sum()


def compute_signature(features: Tensor, labels: Tensor, *, num_classes: int, smoothing: float) -> Signature:
    """Return the signature of a client's training samples.

    Args:
        features: (M, d) pooled features of M of them.
        labels: (n,) labels of all of them, n >= M.
        num_classes: number of classes of the task.
        smoothing: pseudo-count per class.
    """
    return Signature(
        feature_mean=features.mean(dim=0),
        feature_std=features.std(dim=0, correction=0),
        class_frequencies=class_frequencies(labels, num_classes, smoothing),
        log_num_examples=float(torch.log(torch.tensor(float(labels.numel())))),
    )


NORMAL_DEVIATION = 1.4826
"""Standard deviation of a normal distribution whose median absolute deviation is 1."""
LEAST_SCALE = 1e-6
FURTHEST = 5.0
"""How many scales a coordinate lies from the center at most."""


def drift(before: Signature, after: Signature, known: Sequence[Signature]) -> float:
    """Return how far a signature moved: root mean square over coordinates, in standard deviations of ``known`` ones."""
    scale = Standardizer.fit(torch.stack([one.vector() for one in known])).scale
    moved = (after.vector() - before.vector()) / scale.clamp_min(1e-3)
    return float(moved.square().mean().sqrt())


@dataclass(frozen=True)
class Standardizer:
    """Robust standardisation of signatures: no single one can change much what the others are scaled to.

    Center and scale are the median and the median absolute deviation, which fewer than half of the clients cannot move
    outside the range of the others; values beyond ``FURTHEST`` are clipped. A coordinate that is the same for more than
    half of the clients (the frequency of a rare class) has no such scale and takes mean and standard deviation.

    Attributes:
        center: (k,) of the signatures that it was fitted to.
        scale: (k,) at least 1e-6, so that a constant coordinate stays 0.
    """

    center: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, vectors: Tensor) -> Standardizer:
        """Fit to the signatures (N, k) of all clients known."""
        median = vectors.quantile(0.5, dim=0)
        deviation = NORMAL_DEVIATION * (vectors - median).abs().quantile(0.5, dim=0)
        shared = deviation < LEAST_SCALE
        scale = torch.where(shared, vectors.std(dim=0, correction=0), deviation)
        return cls(torch.where(shared, vectors.mean(dim=0), median), scale.clamp_min(LEAST_SCALE))

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return (vectors - center) / scale within -+ ``FURTHEST``, for signatures (..., k)."""
        return ((vectors - self.center) / self.scale).clamp(-FURTHEST, FURTHEST)


@dataclass(frozen=True)
class Projection:
    """Reduces signatures to their directions of largest variance; once fitted, coordinates keep their meaning.

    Attributes:
        standardizer: fitted to the same signatures.
        basis: (k, p) directions; a projected coordinate has variance at most 1 over the clients fitted to.
        fitted: number of those clients.
    """

    standardizer: Standardizer
    basis: Tensor
    fitted: int

    @classmethod
    def fit(cls, vectors: Tensor, weights: Tensor, size: int) -> Projection:
        """Fit to signatures (N, k) whose coordinates count by ``weights`` (k,); p is at most ``size`` and N - 1."""
        standardizer = Standardizer.fit(vectors)
        scaled = standardizer(vectors) * weights
        _, singular, directions = torch.linalg.svd(scaled, full_matrices=False)
        count = max(1, min(size, vectors.shape[0] - 1, directions.shape[0]))
        scale = singular[0].clamp_min(1e-6) / vectors.shape[0] ** 0.5
        return cls(standardizer, directions[:count].mT * weights[:, None] / scale, vectors.shape[0])

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the embeddings (..., p) of signatures (..., k)."""
        return self.standardizer(vectors) @ self.basis


SENSITIVITY = math.sqrt(8.0)
"""Joint L2 sensitivity of the three normalised sums: replacing a sample moves their entries by 2, sqrt 2 and sqrt 2."""


def private_signature(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    smoothing: float,
    clip: float,
    noise: float,
    draw: Draw,
    reported_examples: int,
) -> Signature:
    """Return a signature by which a training sample and any other in its place can hardly be told apart.

    The Gaussian mechanism (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", theorem A.1; exact
    epsilon by Balle and Wang, 2018) on the mean features, their mean squares and the label frequencies at once.
    Neighbours differ in one sample that is replaced. Standard deviations and frequencies are computed from the noised
    moments and ``reported_examples``, which costs no more privacy.

    Args:
        features: (M, d) pooled features of at most M samples.
        labels: (n,) labels of all of them, n >= M.
        num_classes: number of classes of the task.
        smoothing: pseudo-count per class.
        clip: root mean square that a sample's features are clipped to; squares are clipped to sqrt 2 of what is left.
        noise: standard deviation of the noise in units of the sensitivity (the noise multiplier).
        draw: makes the noise; :func:`hyperlora.noise.secret_noise` where it shall protect.
        reported_examples: number of samples that the signature tells and smooths by: n, or any other that hides it.

    Raises:
        ValueError: a feature is not finite, so that it cannot be clipped.
    """
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the features of the training samples are not finite, so that they cannot be clipped")
    count, width = features.shape
    largest = clip * math.sqrt(width)
    bounded = _within(features.double(), largest)
    squares_bound = clip * largest * math.sqrt(2.0)
    squares = _within(bounded.square(), squares_bound)
    frequencies = torch.bincount(labels, minlength=num_classes).double() / labels.numel()
    step = noise * SENSITIVITY / count
    mean = noised(bounded.mean(dim=0), step * largest, draw)
    second = noised(squares.mean(dim=0), step * squares_bound, draw)
    noisy = noised(frequencies, step, draw).clamp_min(0.0)
    noisy = noisy / noisy.sum().clamp_min(1e-6)
    smooth = noisy * reported_examples + smoothing
    return Signature(
        feature_mean=mean,
        feature_std=(second - mean.square()).clamp_min(0.0).sqrt(),
        class_frequencies=smooth / smooth.sum(),
        log_num_examples=math.log(reported_examples),
    )


def _within(rows: Tensor, largest: float) -> Tensor:
    """Shorten rows (M, d) that are longer than ``largest``."""
    shortened: Tensor = rows * (largest / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return shortened
