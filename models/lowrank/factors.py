"""Product-space algebra of LoRA factors: sums, truncations and inner products of delta weights dW = B A.

What clients learn is compared and averaged as the product, never as ``B`` and ``A`` apart, since
``sum p_k B_k A_k - (sum p_k B_k)(sum p_k A_k) = sum p_k (B_k - B)(A_k - A)`` is not zero. Everything here
works on the factors: no m x n matrix is formed except by :meth:`Factors.product`. The leading dimensions
``...`` are layers of equal shape. float16 and bfloat16 are accepted; results are float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROW_NORM = 1 / math.sqrt(3)
"""Norm of the rows of ``A`` in :func:`truncate`: kaiming_uniform(a=sqrt 5), PEFT's start of ``lora_A``, draws
each of the n entries of a row from U(-1/sqrt n, 1/sqrt n), whose variance is 1 / (3 n)."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A stack of delta weights dW = B A in factored form.

    Args:
        B: left factors, (..., m, r).
        A: right factors, (..., r, n).

    Raises:
        ValueError: if the inner or the batch dimensions of ``B`` and ``A`` differ.
    """

    B: Tensor
    A: Tensor

    def __post_init__(self) -> None:
        B, A = tuple(self.B.shape), tuple(self.A.shape)
        if len(B) < 2 or len(A) < 2 or B[:-2] != A[:-2] or B[-1] != A[-2]:
            raise ValueError(f"expected B (..., m, r) and A (..., r, n) with equal '...' and r, got B {B} and A {A}")

    @property
    def rank(self) -> int:
        """The inner dimension r; the products may have a lower rank."""
        return self.B.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (..., m, n) of dW."""
        return (*self.B.shape[:-1], self.A.shape[-1])

    @property
    def wide_dtype(self) -> torch.dtype:
        """The common type of both factors, float32 or wider, that results are computed in."""
        return torch.promote_types(torch.promote_types(self.B.dtype, self.A.dtype), torch.float32)

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the factors in ``dtype``."""
        return Factors(self.B.to(dtype), self.A.to(dtype))

    def product(self) -> Tensor:
        """Return dW = B A, (..., m, n); for tests and small layers only."""
        return self.B.to(self.wide_dtype) @ self.A.to(self.wide_dtype)

    def scaled(self, weight: float) -> Factors:
        """Return the factors of ``weight * dW``."""
        return Factors(self.B.to(self.wide_dtype) * weight, self.A.to(self.wide_dtype))

    def transposed(self) -> Factors:
        """Return the factors of dW^T, which share memory with these."""
        return Factors(B=self.A.mT, A=self.B.mT)


class Truncation(NamedTuple):
    """Result of :func:`truncate`: the kept factors, and the singular values of the input's dW, largest first."""

    kept: Factors
    singular_values: Tensor


def concatenate(factors: Sequence[Factors], weights: Sequence[float] | None = None) -> Factors:
    """Return sum_i w_i B_i A_i exactly, as [w_1 B_1 | w_2 B_2 | ...] [A_1; A_2; ...].

    Its rank is the sum of the ranks, which may differ (FLoRA, arXiv 2409.05976). Differentiable.

    Args:
        factors: N stacks of equal m, n and batch dimensions.
        weights: N numbers; none means 1 for each.

    Raises:
        ValueError: if there are no factors, their shapes differ, or there are not N weights.
    """
    _check_same_shape(factors)
    if weights is not None and len(weights) != len(factors):
        raise ValueError(f"expected {len(factors)} weights, one for each stack of factors, got {len(weights)}")
    terms = [f.to(f.wide_dtype) if weights is None else f.scaled(weights[i]) for i, f in enumerate(factors)]
    return Factors(torch.cat([t.B for t in terms], dim=-1), torch.cat([t.A for t in terms], dim=-2))


def truncate(factors: Factors, rank: int) -> Truncation:
    """Return the best approximation of dW by rank ``rank`` (Eckart-Young).

    With B = Q_B R_B and A^T = Q_A R_A, the SVD of the small core R_B R_A^T = U S V^T gives the SVD
    dW = (Q_B U) S (Q_A V)^T. The gauge is B = (Q_B U) S / c and A = c (Q_A V)^T with c = :data:`ROW_NORM`:
    the rows of ``A`` are orthogonal and as long as those of a fresh adapter, so local training of a truncated
    adapter starts with the step sizes of a fresh one. The largest entry of each left singular vector is
    positive. Where R < ``rank``, ``B`` ends in zero columns and ``A`` is completed by orthogonal rows.
    Computed in float64, in O(R^2 (m + n)); many clients are for :func:`models.lowrank.truncation.best_rank`.
    Not meant to be differentiated.

    Args:
        factors: input of rank R, B (..., m, R) and A (..., R, n).
        rank: rank of the result, 1 to min(m, n).

    Returns:
        The kept factors of rank ``rank``, and the min(m, n, R) singular values.

    Raises:
        ValueError: if ``rank`` is not in 1 to min(m, n).
    """
    dtype, R, (*_, m, n) = factors.wide_dtype, factors.rank, factors.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"expected a rank from 1 to min(m, n) = {min(m, n)}, got {rank}")
    wide = padded(factors.to(torch.float64), max(R, rank))
    Q_B, R_B = torch.linalg.qr(wide.B)
    Q_A, R_A = torch.linalg.qr(wide.A.mT)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    S[..., R:] = 0
    left, right = Q_B @ U, Vh @ Q_A.mT
    sign = left.gather(-2, left.abs().argmax(dim=-2, keepdim=True)).sign()
    B = (left * sign * S[..., None, :] / ROW_NORM).to(dtype)
    A = (right * sign.mT * ROW_NORM).to(dtype)
    kept = Factors(B[..., :rank].contiguous(), A[..., :rank, :].contiguous())
    return Truncation(kept, S[..., :R].to(dtype))


def padded(factors: Factors, rank: int) -> Factors:
    """Return the same dW with zero columns of B and zero rows of A up to ``rank``; a smaller one cuts the last."""
    missing = rank - factors.rank
    pad = torch.nn.functional.pad
    return Factors(pad(factors.B, (0, missing)), pad(factors.A, (0, 0, 0, missing)))


def inner(x: Factors, y: Factors) -> Tensor:
    """Return <dW_x, dW_y>_F = sum((B_x^T B_y) * (A_x A_y^T)), shape (...); differentiable.

    Raises:
        ValueError: if m, n or the batch dimensions differ.
    """
    _check_same_shape([x, y])
    dtype = torch.promote_types(x.wide_dtype, y.wide_dtype)
    x, y = x.to(torch.float64), y.to(torch.float64)
    return ((x.B.mT @ y.B) * (x.A @ y.A.mT)).sum(dim=(-2, -1)).to(dtype)


def gram(factors: Sequence[Factors]) -> Tensor:
    """Return all inner products <dW_i, dW_j>_F, shape (N, N, ...); differentiable.

    The ranks may differ. Holds two float64 tensors (N, N, ..., r, r) on the way.

    Raises:
        ValueError: if there are no factors or m, n or the batch dimensions differ.
    """
    _check_same_shape(factors)
    rank = max(f.rank for f in factors)
    alike = [padded(f.to(f.wide_dtype), rank) for f in factors]
    B, A = torch.stack([f.B for f in alike]), torch.stack([f.A for f in alike])
    B64, A64 = B.to(torch.float64), A.to(torch.float64)
    left = torch.einsum("i...mr,j...ms->ij...rs", B64, B64)
    right = torch.einsum("i...rn,j...sn->ij...rs", A64, A64)
    return (left * right).sum(dim=(-2, -1)).to(B.dtype)


def norm(x: Factors) -> Tensor:
    """Return the Frobenius norm of dW, shape (...)."""
    return inner(x, x).clamp(min=0).sqrt()


def align(factors: Factors, reference: Factors) -> Factors:
    """Turn the gauge of ``factors`` towards ``reference``: (B R^T, R A), whose product is unchanged.

    R in O(r) minimises ||R A - A_ref||_F (orthogonal Procrustes, Schoenemann 1966): with the SVD
    A_ref A^T = U S V^T it is R = U V^T.

    Raises:
        ValueError: if the shapes of the two ``A`` differ.
    """
    if factors.A.shape != reference.A.shape:
        expected, got = tuple(reference.A.shape), tuple(factors.A.shape)
        raise ValueError(f"expected an A of the reference's shape {expected}, got {got}")
    B, A = factors.B.to(torch.float64), factors.A.to(torch.float64)
    U, _, Vh = torch.linalg.svd(reference.A.to(torch.float64) @ A.mT)
    R = U @ Vh
    return Factors(B @ R.mT, R @ A).to(factors.wide_dtype)


def _check_same_shape(factors: Sequence[Factors]) -> None:
    """Raise ValueError unless there are factors and all share m, n and the batch dimensions."""
    if not factors:
        raise ValueError("expected at least one stack of factors, got none")
    expected = factors[0].shape
    for i, pair in enumerate(factors):
        if pair.shape != expected:
            raise ValueError(f"expected (..., m, n) = {expected} as of the first factors, got {pair.shape} at {i}")
