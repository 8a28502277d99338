"""T_r of the mixtures of a whole cohort, in the gauge of a reference, as :mod:`models.truncation` makes it for one.

Y_i = X_i V_i V_i^T with V_i from one block Lanczos over all clients and layers. What its bound does not cover after
``MOST_STEPS`` steps is truncated client by client. Small mixtures go the exact way, all in one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.block_lanczos import Ritz, leading_right_vectors
from models.low_rank import ROW_NORM, Factors, align
from models.mixtures import Mixtures
from models.truncation import SMALL, TOLERANCE, best_rank

MOST_STEPS = 6


def truncated_mixtures(X: Mixtures, rank: int, reference: Factors) -> Factors:
    """Return the best approximation of every X_i by rank ``rank``, (N, L, m, r) and (N, L, r, n).

    The rows of ``A`` are orthogonal, as long as those of a fresh adapter, and turned as near to those of ``reference``
    (L, r, n) as they can be: the gauge of ``best_rank`` followed by :func:`models.low_rank.align`.

    Raises:
        ValueError: as :func:`models.truncation.best_rank`.
    """
    if X.rank <= SMALL or min(X.m, X.n) <= SMALL:
        return _aligned(best_rank(X.concatenated(), rank), reference)
    wide = X.n > X.m
    side = X.transposed() if wide else X
    found = leading_right_vectors(side, (rank,), tolerance=TOLERANCE, most_steps=MOST_STEPS)
    result = _in_gauge(found, wide, reference)
    missed = (torch.maximum(found.excess, found.noise) > TOLERANCE).any(dim=1)
    for index in missed.nonzero().flatten().tolist():
        exact = align(best_rank(X.one(index), rank), reference)
        result.B[index], result.A[index] = exact.B, exact.A
    return result


def _aligned(factors: Factors, reference: Factors) -> Factors:
    expanded = Factors(reference.B.expand_as(factors.B), reference.A.expand_as(factors.A))
    return align(factors, expanded)


def _in_gauge(found: Ritz, wide: bool, reference: Factors) -> Factors:
    """Return X V V^T with A = c R V^T, R in O(r) as near to the reference as possible (Procrustes), c = ROW_NORM."""
    left, right = found.XV, found.V
    if wide:
        right, small = torch.linalg.qr(found.XV)
        left = found.V @ small.mT
    U, _, Vh = torch.linalg.svd((reference.A.to(right.dtype) @ right).to(torch.float64))
    turn: Tensor = (U @ Vh).to(right.dtype)
    return Factors(B=left @ turn.mT / ROW_NORM, A=turn @ right.mT * ROW_NORM)
