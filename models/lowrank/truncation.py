"""T_r(X), the best approximation by rank r of a sum X of many clients' factors.

Of four ways, all exact, the cheapest is taken. All end alike: right singular vectors V (n, r) are found, X V is
computed from the factors, and Y = X V V^T is brought to the gauge of :func:`models.lowrank.factors.truncate`. They
differ in how V is found:

- ``qr``: QR of both stacks and SVD of the core, in float64; where nothing is large, or where products cancel.
- ``gram``: eigenvectors of the R x R core (B^T B)^(1/2) A A^T (B^T B)^(1/2), in float64; a few clients.
- ``lanczos``: products of X with blocks of vectors (:mod:`models.lowrank.block_lanczos`); many clients. Its result is
  taken only where its bound is under :data:`TOLERANCE`, else the cheaper of the other ways decides.
- ``dense``: X is formed and the eigenvectors of X^T X are taken, in float64; many clients and a flat spectrum.

The error is at most that of the best rank-r matrix plus ``TOLERANCE * ||X||_F``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.lowrank.block_lanczos import NOT_FINITE, OVERSAMPLING, leading_right_vectors
from models.lowrank.factor_stack import FactorStack
from models.lowrank.factors import Factors, truncate

TOLERANCE = 1e-6
SMALL = 48
FIRST_STEPS = 3
GRAM_NOISE = 1e-15
"""Relative error of the eigenvalues of the core, a few float64 roundings."""


def best_rank(total: Factors | FactorStack, *cuts: int, method: str | None = None) -> Factors:
    """Return the best approximation of X by rank ``max(cuts)``, whose first r components are the best for every cut r.

    The same call gives the same bits. The order of the terms of X moves the result by no more than their rounding does.

    Args:
        total: X, (..., m, n).
        cuts: ranks, from 1 to min(m, n).
        method: one of the four ways, instead of the cost model's choice; for tests and measurements.

    Raises:
        ValueError: a cut is not in 1 to min(m, n), or the factors are not finite.
    """
    X = FactorStack.of(total) if isinstance(total, Factors) else total
    if not all(1 <= cut <= min(X.m, X.n) for cut in cuts):
        raise ValueError(f"expected a rank from 1 to min(m, n) = {min(X.m, X.n)}, got {max(cuts)}")
    costs = estimate_costs(X, max(cuts))
    way = method or min(costs, key=lambda name: costs[name])
    if way == "lanczos":
        exact = min((name for name in costs if name != way), key=lambda name: costs[name])
        most_steps = round(FIRST_STEPS * max(1.0, costs[exact] / costs.get(way, math.inf)))
        found = _by_lanczos(X, cuts, most_steps)
        if found is not None:
            return found
        way = exact
    return _exact(X, max(cuts), way)


def estimate_costs(X: FactorStack, rank: int) -> Mapping[str, float]:
    """Return for every way that makes sense the time for one layer, in float32 operations of a large matrix product.

    Operations count twice in float64 and in products with a thin block; the other constants are measured, see
    docs/performance.md.
    """
    R, rows, least, block = X.rank, X.m + X.n, min(X.m, X.n), rank + OVERSAMPLING
    qr = 20.0 * R * R * rows + 100.0 * min(R, least) ** 3
    if R <= SMALL or least <= SMALL:
        return {"qr": qr}
    basis = FIRST_STEPS * block
    lanczos = (2 * FIRST_STEPS + 1) * 4.0 * R * rows * block + 10.0 * basis**2 * rows + 100.0 * basis**3
    gram = 4.0 * R * R * rows + 50.0 * R**3
    dense = 4.0 * X.m * X.n * R + 4.0 * X.m * X.n * least + 25.0 * least**3
    return {"qr": qr, "gram": gram, "lanczos": lanczos, "dense": dense}


def _exact(X: FactorStack, rank: int, way: str) -> Factors:
    if way == "dense":
        return _by_dense(X, rank)
    total = X.concatenated()
    found = _by_gram(total, rank) if way == "gram" else None
    if found is None:
        _check_finite(total.B, total.A)
        return truncate(total, rank).kept
    return found


def _by_lanczos(X: FactorStack, cuts: Sequence[int], most_steps: int) -> Factors | None:
    """Return None where the bound is not reached; in float64 where products cancel and float32 is too coarse."""
    wide = X.n > X.m
    found = leading_right_vectors(X.transposed() if wide else X, cuts, tolerance=TOLERANCE, most_steps=most_steps)
    if not bool((found.noise <= TOLERANCE).all()) and X.dtype != torch.float64:
        better = _by_lanczos(replace(X, dtype=torch.float64), cuts, most_steps)
        return None if better is None else better.to(X.dtype)
    if not bool((found.excess <= TOLERANCE).all()):
        return None
    return _in_gauge(found.XV, found.V, wide)


def _by_dense(X: FactorStack, rank: int) -> Factors:
    wide, matrix = X.n > X.m, X.dense()
    matrix = matrix.mT if wide else matrix
    _check_finite(matrix)
    scaled = matrix / matrix.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    V = torch.linalg.eigh(scaled.mT @ scaled)[1][..., -rank:]
    return _in_gauge(matrix @ V, V, wide, X.dtype)


def _by_gram(total: Factors, rank: int) -> Factors | None:
    """Return None where products cancel, so that the core may not know the largest of what is left."""
    B, A = total.B.to(torch.float64), total.A.to(torch.float64)
    left, right = B.mT @ B, A @ A.mT
    _check_finite(left, right)
    left, vectors = torch.linalg.eigh(left)
    root = left.clamp(min=0).sqrt()[..., None] * vectors.mT
    energy, W = torch.linalg.eigh(root @ right @ root.mT)
    noise = GRAM_NOISE * left[..., -1] * torch.linalg.matrix_norm(right)
    if not bool((_noise_error(energy, noise, rank) <= TOLERANCE).all()):
        return None
    V = torch.linalg.qr(((W[..., -rank:].mT @ root) @ A).mT)[0]
    return _in_gauge(B @ (A @ V), V, False, total.B.dtype)


def _noise_error(energy: Tensor, noise: Tensor, rank: int) -> Tensor:
    """Return how far the error may be from the best, over ||X||, where squared singular values are off by ``noise``."""
    norm = energy.clamp(min=0).sum(dim=-1).sqrt()
    tail = energy[..., :-rank].clamp(min=0).sum(dim=-1).sqrt()
    lost = 2 * rank * noise
    error = torch.minimum(lost.sqrt(), lost / (2 * tail)) / norm
    return torch.where(noise > 0, error, torch.zeros_like(error))


def _in_gauge(XV: Tensor, V: Tensor, transposed: bool, dtype: torch.dtype | None = None) -> Factors:
    """Return X V V^T (its transpose where X was transposed) in the gauge of ``truncate``."""
    B, A = (V, XV.mT) if transposed else (XV, V.mT)
    return truncate(Factors(B, A), V.shape[-1]).kept.to(dtype or XV.dtype)


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ValueError(NOT_FINITE)
