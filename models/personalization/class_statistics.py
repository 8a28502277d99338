"""Class statistics: what each class looks like at a client, in the feature space of an adapter.

A client sends, per class, the number of its samples and the sum of their features, and the scatter within its classes
as a low-rank factor with the rest on the diagonal. All of it is additive over clients, and its size is about that of a
head. A head follows from it in closed form (:mod:`models.personalization.head_generator`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

WIDEST_SPREAD, MOST_SAMPLES = 4.0, 3.0
"""How large a client's spread within classes and its number of samples may be, in units of the median client's."""


@dataclass(frozen=True)
class ClassStatistics:
    """Statistics of a client's training samples by class.

    Attributes:
        counts: (C,) samples n_c of each class.
        sums: (C, d) sum of their features.
        scatter: (q, d) factor F of the scatter within classes: F^T F + diag(remainder) is about
            sum_c sum_k (x_ck - mean_c)(x_ck - mean_c)^T, exact on the diagonal.
        remainder: (d,) what F^T F leaves out on the diagonal, not negative.
    """

    counts: Tensor
    sums: Tensor
    scatter: Tensor
    remainder: Tensor

    def __post_init__(self) -> None:
        """Check shapes and signs; raises ValueError."""
        classes, width = self.sums.shape
        if self.counts.shape != (classes,) or self.remainder.shape != (width,) or self.scatter.shape[1:] != (width,):
            raise ValueError("the parts of class statistics have shapes that do not belong together")
        if bool((self.counts < 0).any()) or bool((self.remainder < 0).any()):
            raise ValueError("class statistics cannot have negative counts or a negative scatter")

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the scatter: of each class its samples less one."""
        return float((self.counts - 1.0).clamp_min(0.0).sum())

    def dense_scatter(self) -> Tensor:
        """Return F^T F + diag(remainder), (d, d)."""
        return self.scatter.mT @ self.scatter + torch.diag(self.remainder)

    def tensors(self) -> dict[str, Tensor]:
        """Return all parts by name."""
        return {
            "counts": self.counts,
            "sums": self.sums,
            "scatter": self.scatter,
            "remainder": self.remainder,
        }


def compute_class_statistics(features: Tensor, labels: Tensor, *, num_classes: int, rank: int) -> ClassStatistics:
    """Return the statistics of samples.

    Args:
        features: (n, d) pooled features.
        labels: (n,) classes.
        num_classes: C.
        rank: most rows of the scatter's factor; d or more keeps the scatter exactly.
    """
    features = features.float()
    counts = torch.bincount(labels, minlength=num_classes).float()
    sums = torch.zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    residuals = features - (sums / counts.clamp_min(1.0)[:, None])[labels]
    _, singular, directions = torch.linalg.svd(residuals, full_matrices=False)
    scatter = (singular[:, None] * directions)[:rank]
    remainder = (residuals.square().sum(dim=0) - scatter.square().sum(dim=0)).clamp_min(0.0)
    return ClassStatistics(counts, sums, scatter, remainder)


def pooled_covariance(statistics: Iterable[ClassStatistics], ridge: float) -> Tensor:
    """Return the covariance within classes over all clients, with ``ridge`` times its mean variance on the diagonal.

    Args:
        statistics: of clients, none or more; clients count by their samples.
        ridge: share of the mean variance that is added, positive.

    Returns:
        (d, d), positive definite.

    Raises:
        ValueError: no client has two samples of one class.
    """
    total, freedom = None, 0.0
    for one in statistics:
        total = one.dense_scatter() if total is None else total + one.dense_scatter()
        freedom += one.freedom
    if total is None or freedom <= 0:
        raise ValueError("no client has two samples of a class, so that nothing is known of the spread within classes")
    covariance = total / freedom
    return covariance + torch.diag(torch.full((len(covariance),), ridge * float(covariance.diagonal().mean()) + 1e-8))


def mean_by_class(statistics: Collection[ClassStatistics]) -> Tensor:
    """Return the mean of each class over clients (C, d); a class that nobody has gets the mean of all samples."""
    counts = torch.stack([one.counts for one in statistics]).double().sum(dim=0)[:, None]
    sums = torch.stack([one.sums for one in statistics]).double().sum(dim=0)
    return torch.where(counts > 0, sums / counts.clamp_min(1.0), sums.sum(dim=0) / counts.sum())


def discriminant(means: Tensor, covariance: Tensor) -> Tensor:
    """Return the head (C, d + 1) of means (C, d): W = M Sigma^-1, b_c = -m_c^T Sigma^-1 m_c / 2, centred."""
    weight = torch.linalg.solve(covariance, means.mT).mT
    head = torch.cat([weight, -0.5 * (weight * means).sum(dim=1, keepdim=True)], dim=1)
    return (head - head.mean(dim=0)).float()


def bounded(statistics: Sequence[ClassStatistics]) -> list[ClassStatistics]:
    """Return the statistics of clients, with implausibly large values clipped relative to the other clients.

    A spread within classes is at most ``WIDEST_SPREAD`` times the median one, and a client counts for at most
    ``MOST_SAMPLES`` times the median number of samples. Fewer than three clients are left as they are. Class means are
    checked where they can be compared (:mod:`models.personalization.plausible`).
    """
    if len(statistics) < 3:
        return list(statistics)
    spreads = torch.stack([one.dense_scatter().diagonal().sum() / max(one.freedom, 1.0) for one in statistics])
    most = MOST_SAMPLES * torch.stack([one.counts.sum() for one in statistics]).median()
    known = spreads[torch.tensor([one.freedom > 0 for one in statistics])]
    widest = WIDEST_SPREAD * known.median() if len(known) else torch.tensor(torch.inf)
    return [
        at_most(one, float(most), float(widest / spread.clamp_min(1e-12)))
        for one, spread in zip(statistics, spreads, strict=True)
    ]


def at_most(one: ClassStatistics, most: float, spread: float = 1.0) -> ClassStatistics:
    """Return statistics of at most ``most`` samples, their variance within classes times ``spread`` where below 1."""
    weight = min(1.0, most / max(float(one.counts.sum()), 1.0))
    fewer = ClassStatistics(weight * one.counts, weight * one.sums, one.scatter, one.remainder)
    narrow = min(1.0, spread) * fewer.freedom / max(one.freedom, 1.0)
    return replace(fewer, scatter=narrow**0.5 * one.scatter, remainder=narrow * one.remainder)
