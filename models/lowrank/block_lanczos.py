"""The leading right singular vectors of a sum of products by block Lanczos, with a bound on what they miss.

With orthonormal V_1 = orth(X^T Omega), Omega Gaussian, and V_{j+1} = orth((I - V V^T) X^T X V_j), the Ritz pairs of
X^T X on V = [V_1 ... V_p] are s_i^2, v_i; each step multiplies X and X^T once with a block (Golub & Underwood 1977;
Musco & Musco 2015, arXiv 1504.05477).

The bound: let U_1 = X V_1 S^-1 for the first j Ritz pairs and G = X^T U_1 - V_1 S what is missing from a singular
pair. In the bases [U_1, U_2], [V_1, V_2] the matrix is [[S, G^T V_2], [0, D]], and with d = ||D|| < s_j the energy
that the j best directions have beyond V_1 is at most ||G||_F^2 s_j^2 / (s_j^2 - d^2). For a cut at r > j another
(r - j) d^2 may be missing. d is taken from the next Ritz value and its residual: since Omega is Gaussian, a direction
stronger than a converged one is absent from V with a probability of about (residual)^(oversampling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.lowrank.factor_stack import LinearMap

OVERSAMPLING = 8
SEED = 20_260
NOT_FINITE = "the factors hold NaN or infinity, or their product overflows; leave such clients out of the sum"


@dataclass(frozen=True, eq=False)
class Ritz:
    """Right Ritz vectors of X, strongest first.

    Attributes:
        V: (..., n, k) orthonormal columns.
        XV: (..., m, k) their images.
        excess: (...) bound on the error beyond the best rank, over ||X||, the largest over the cuts asked for.
        noise: (...) rounding error of X V over ||X V||: by how much V^T (X^T X V) and (X V)^T X V differ.
    """

    V: Tensor
    XV: Tensor
    excess: Tensor
    noise: Tensor


def leading_right_vectors(X: LinearMap, cuts: Sequence[int], *, tolerance: float, most_steps: int) -> Ritz:
    """Return ``max(cuts)`` right vectors after as many steps as the bound asks for, at most ``most_steps``.

    Args:
        X: the matrix; m, n at least the basis that the steps make, else they end early.
        cuts: ranks r at which the truncation by the first r vectors must be the best one.
        tolerance: on ``excess``.
        most_steps: products with X and with X^T that may be made.

    Raises:
        ValueError: X has entries that are not finite.
    """
    block = min(max(cuts) + OVERSAMPLING, X.n, X.m)
    V, W, T = _empty(X, X.n), _empty(X, X.m), _empty(X, X.n)
    image = X.transposed_times(_gaussian(X, block))
    scale = _scale(image)
    ritz = None
    for _ in range(most_steps):
        new = _orthonormal_to(V, image / scale)
        if not new.shape[-1]:
            break
        forward = X.times(new)
        scale = _scale(forward) if not W.shape[-1] else scale
        forward = forward / scale
        image = X.transposed_times(forward)
        V, W, T = (torch.cat(pair, dim=-1) for pair in ((V, new), (W, forward), (T, image / scale)))
        ritz = _ritz(V, W, T, scale, cuts)
        if bool((ritz.excess <= tolerance).all()):
            break
    if ritz is None:
        raise ValueError("expected at least one step")
    return ritz


def _empty(X: LinearMap, rows: int) -> Tensor:
    return torch.empty(*X.batch, rows, 0, dtype=X.dtype)


def _gaussian(X: LinearMap, columns: int) -> Tensor:
    """Return Omega (..., m, columns), the same in every call, so that the order of the terms of X does not matter."""
    generator = torch.Generator().manual_seed(SEED)
    omega = torch.randn(X.m, columns, generator=generator, dtype=torch.float64) / math.sqrt(X.m)
    return omega.to(X.dtype).expand(*X.batch, -1, -1)


def _scale(block: Tensor) -> Tensor:
    """Return the Frobenius norm (..., 1, 1), 1 where it is zero."""
    largest = block.abs().amax(dim=(-2, -1), keepdim=True)
    if not bool(largest.isfinite().all()):
        raise ValueError(NOT_FINITE)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def _orthonormal_to(V: Tensor, block: Tensor) -> Tensor:
    """Return an orthonormal basis of what ``block`` has beyond V, fewer columns where the space is full."""
    room = min(block.shape[-2] - V.shape[-1], block.shape[-1])
    for _ in range(2 if V.shape[-1] else 1):
        block = torch.linalg.qr(block - V @ (V.mT @ block))[0]
    return block[..., :room]


def _ritz(V: Tensor, W: Tensor, T: Tensor, scale: Tensor, cuts: Sequence[int]) -> Ritz:
    wide = W.to(torch.float64)
    gram = wide.mT @ wide
    noise = torch.linalg.matrix_norm(V.mT @ T - gram) / gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    values, P = torch.linalg.eigh(gram)
    s, P = values.flip(-1).clamp(min=0).sqrt(), P.flip(-1)
    narrow = P.to(V.dtype)
    vectors = V @ narrow
    missing = T @ narrow - vectors * s.square().to(V.dtype)[..., None, :]
    residual = missing.to(torch.float64).norm(dim=-2)
    rank = max(cuts)
    images = (wide @ P[..., :rank]).to(V.dtype) * scale
    excess = torch.stack([_excess(s, residual, cut) for cut in cuts]).amax(dim=0)
    return Ritz(vectors[..., :rank], images, excess, noise.nan_to_num(0.0))


def _excess(s: Tensor, residual: Tensor, rank: int) -> Tensor:
    """Return the bound on (||X - Y|| - ||X - X_r||) / ||X||.

    Args:
        s: (..., k) Ritz singular values.
        residual: (..., k) norms of X^T X v_i - s_i^2 v_i.
        rank: r.
    """
    count = s.shape[-1]
    energy = s.square()
    split = torch.arange(count)
    beyond = energy + residual
    gap = torch.cat([torch.ones_like(s[..., :1]), 1 - beyond[..., 1:] / energy[..., :-1]], dim=-1)
    lost = torch.cat([torch.zeros_like(s[..., :1]), (residual.square() / energy)[..., :-1]], dim=-1).cumsum(dim=-1)
    bound = lost / gap + (rank - split).clamp(min=0) * beyond
    bound = torch.where((gap > 0) & bound.isfinite(), bound, torch.inf).amin(dim=-1)
    tail = energy[..., rank:].sum(dim=-1).sqrt()
    error = torch.minimum(bound.sqrt(), bound / (2 * tail))
    error = torch.where(bound > 0, error, torch.zeros_like(error))
    return error / energy.sum(dim=-1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
