"""Clients grouped by the subspaces of their lora_B (arXiv 2603.02785, LoRA-subspace adaptive clustering).

U_i are the left singular vectors of client i's smoothed B, d_ij = 1 - ||U_i^T U_j||_F^2 / r is averaged over modules,
and spectral clustering takes exp(-d_ij^2 / (2 sigma^2)) with sigma the median distance. The number of clusters is where
the eigenvalues of the normalised Laplacian leave the largest gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

FEWEST_CLIENTS = 3
LEAST_DISTANCE = 1e-6

Bases = Mapping[str, Tensor]
"""Kind -> B (blocks, m, r) of length 1 in every block."""


def normalised(B: Tensor) -> Tensor:
    """Return B (blocks, m, r) with Frobenius norm 1 in every block; zeros stay zeros."""
    length: Tensor = B.flatten(1).norm(dim=1).clamp_min(torch.finfo(B.dtype).tiny)
    return B / length[:, None, None]


def smoothed(before: Bases | None, now: Bases, share: float) -> dict[str, Tensor]:
    """Return share * before + (1 - share) * now, normalised; ``now`` where there was nothing before."""
    fresh = {kind: normalised(B) for kind, B in now.items()}
    if before is None:
        return fresh
    return {kind: normalised(share * before[kind] + (1 - share) * B) for kind, B in fresh.items()}


def subspace_distances(bases: Sequence[Bases]) -> Tensor:
    """Return d (N, N) of N clients, float64, in [0, 1]."""
    total, modules = torch.zeros(len(bases), len(bases), dtype=torch.float64), 0
    for kind in bases[0]:
        left, _, _ = torch.linalg.svd(torch.stack([one[kind] for one in bases]).double(), full_matrices=False)
        for block in left.unbind(1):
            total += torch.einsum("imr,jms->ijrs", block, block).square().sum(dim=(2, 3)) / block.shape[-1]
            modules += 1
    return (1 - total / modules).clamp(0, 1).fill_diagonal_(0)


def clusters_of(distances: Tensor, most: int, seed: int) -> list[int]:
    """Return the cluster of each of N clients from their distances (N, N); all in one where they are too few."""
    from sklearn.cluster import SpectralClustering  # brings scipy, which most runs do without

    count = len(distances)
    if count < FEWEST_CLIENTS or float(distances.max()) < LEAST_DISTANCE:
        return [0] * count
    apart = distances[~torch.eye(count, dtype=torch.bool)]
    affinity = torch.exp(-distances.square() / (2 * apart.median().clamp_min(LEAST_DISTANCE).square()))
    number = number_of_clusters(affinity, min(most, count - 1))
    spectral = SpectralClustering(number, affinity="precomputed", random_state=seed % 2**32)
    return [int(label) for label in spectral.fit_predict(np.asarray(affinity))]


def number_of_clusters(affinity: Tensor, most: int) -> int:
    """Return K in 2 to ``most`` with the largest gap between eigenvalues K and K + 1 of the normalised Laplacian."""
    scale = affinity.sum(dim=1).rsqrt()
    laplacian = torch.eye(len(affinity), dtype=affinity.dtype) - scale[:, None] * affinity * scale
    values = torch.linalg.eigvalsh(laplacian)
    gaps = values[2 : most + 1] - values[1:most]
    return 2 + int(gaps.argmax()) if len(gaps) else 1
