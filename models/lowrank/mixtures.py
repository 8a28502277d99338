"""Mixtures of the same terms, one for each client of a cohort, and their truncations T_r, for all clients at once.

X_i = sum_s c_is b_s a_s^T + O_i: the terms (anchor and remembered deviations) are shared and only their weights differ,
so a block of vectors for every client goes through each factor in one large matrix product.
T_r(X_i) = X_i V_i V_i^T with V_i from one block Lanczos over all clients and layers. A mixture that its bound does not
cover after ``MOST_STEPS`` steps is truncated alone. Small mixtures are truncated exactly, all in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.lowrank.block_lanczos import Ritz, leading_right_vectors
from models.lowrank.factors import ROW_NORM, Factors, align, concatenate
from models.lowrank.truncation import SMALL, TOLERANCE, best_rank

MARKS = 4
"""Numbers of each column by which equal columns are found, before all are compared."""
MOST_STEPS = 6
"""Products with X and with X^T before a mixture is truncated the exact way."""


@dataclass(frozen=True, eq=False)
class Mixtures:
    """X_i = B diag(c_i) A + O_i for N clients and L layers of equal shape; no m x n matrix is formed.

    Attributes:
        shared: the terms b_s a_s^T, ``B`` (L, m, S) and ``A`` (L, S, n).
        weights: c, (N, S).
        individual: O_i, ``B`` (N, L, m, K) and ``A`` (N, L, K, n); None where all terms are shared.
        dtype: of the products.
    """

    shared: Factors
    weights: Tensor
    individual: Factors | None = None
    dtype: torch.dtype = torch.float32

    @property
    def m(self) -> int:
        """Rows of X_i."""
        return self.shared.B.shape[-2]

    @property
    def n(self) -> int:
        """Columns of X_i."""
        return self.shared.A.shape[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading dimensions (N, L) of every product."""
        return len(self.weights), self.shared.B.shape[0]

    @property
    def rank(self) -> int:
        """The inner dimension S + K of every X_i."""
        return self.shared.rank + (0 if self.individual is None else self.individual.rank)

    def transposed(self) -> Mixtures:
        """Return X_i^T."""
        individual = None if self.individual is None else self.individual.transposed()
        return Mixtures(self.shared.transposed(), self.weights, individual, self.dtype)

    def times(self, V: Tensor) -> Tensor:
        """Return X_i V_i, (N, L, m, k), for V (N, L, n, k)."""
        B, A = self.shared.B.to(V.dtype), self.shared.A.to(V.dtype)
        count, k = V.shape[0], V.shape[-1]
        if V.stride(0) == 0:  # one block for all clients, as where an iteration starts
            inner = (A @ V[0])[:, :, None, :] * self.weights.T[:, :, None].to(V.dtype)
        else:
            inner = (A @ V.permute(1, 2, 0, 3).flatten(2)).view(len(A), -1, count, k)
            inner *= self.weights.T[:, :, None].to(V.dtype)
        total = (B @ inner.flatten(2)).view(len(B), -1, count, k).permute(2, 0, 1, 3).contiguous()
        if self.individual is not None:
            total += self.individual.B.to(V.dtype) @ (self.individual.A.to(V.dtype) @ V)
        return total

    def transposed_times(self, U: Tensor) -> Tensor:
        """Return X_i^T U_i, (N, L, n, k), for U (N, L, m, k)."""
        return self.transposed().times(U)

    def concatenated(self) -> Factors:
        """Return all X_i in factors of rank S + K, (N, L, m, S + K) and (N, L, S + K, n)."""
        B = self.shared.B * self.weights[:, None, None, :]
        shared = Factors(B, self.shared.A.expand(len(B), -1, -1, -1))
        return shared if self.individual is None else concatenate([shared, self.individual])

    def of_client(self, index: int) -> Factors:
        """Return X_i of one client, (L, m, R) and (L, R, n), without the terms whose weight is zero."""
        used = self.weights[index].nonzero().flatten()
        shared = Factors(self.shared.B[..., used] * self.weights[index, used], self.shared.A[:, used])
        if self.individual is None:
            return shared
        return concatenate([shared, Factors(self.individual.B[index], self.individual.A[index])])


def distinct_terms(terms: Sequence[Factors]) -> tuple[Factors, Tensor]:
    """Put terms side by side, columns that several of them have in common once.

    A deviation end - anchor brings the anchor's factors with it, which all deviations of a round share.

    Args:
        terms: T stacks of factors (L, m, R) and (L, R, n), whose ranks may differ.

    Returns:
        The different columns of B, with their rows of A, as factors of rank S, and the membership (T, S): how often
        each is in each term, so that sum_t w_t term_t has the weights ``w @ membership``.
    """
    columns = concatenate(terms)
    B, A = columns.B, columns.A
    owner = torch.arange(len(terms)).repeat_interleave(torch.tensor([term.rank for term in terms]))
    first, place = _first_alike(B, A)
    membership = torch.zeros(len(terms), len(first))
    membership.index_put_((owner, place), torch.ones(()), accumulate=True)
    if len(first) < len(place):
        B, A = B[..., first], A[..., first, :]
    return Factors(B, A), membership


def _first_alike(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns that are the first of their kind, in order, and for every column which of those it equals.

    Columns are grouped by a few of their numbers; where a group is not equal in all of them, none are put together.
    """
    marks = torch.cat([B[0, :MARKS].T, A[0, :, :MARKS]], dim=1)
    groups = torch.unique(marks, dim=0, return_inverse=True)[1]
    columns = torch.arange(len(groups))
    first = torch.full((int(groups.max()) + 1,), len(groups)).scatter_reduce_(0, groups, columns, "amin")
    again = (first[groups] != columns).nonzero().flatten()
    same = first[groups][again]
    if not (torch.equal(B[..., again], B[..., same]) and torch.equal(A[..., again, :], A[..., same, :])):
        return columns, columns
    first, order = first.sort()
    return first, order.argsort()[groups]


def truncated_mixtures(X: Mixtures, rank: int, reference: Factors) -> Factors:
    """Return the best approximation of every X_i by rank ``rank``, (N, L, m, r) and (N, L, r, n).

    The rows of ``A`` are orthogonal, as long as those of a fresh adapter, and turned as near to those of ``reference``
    (L, r, n) as they can be: the gauge of ``best_rank`` followed by :func:`models.lowrank.factors.align`.

    Raises:
        ValueError: as :func:`models.lowrank.truncation.best_rank`.
    """
    if X.rank <= SMALL or min(X.m, X.n) <= SMALL:
        best = best_rank(X.concatenated(), rank)
        return align(best, Factors(reference.B.expand_as(best.B), reference.A.expand_as(best.A)))
    wide = X.n > X.m
    side = X.transposed() if wide else X
    found = leading_right_vectors(side, (rank,), tolerance=TOLERANCE, most_steps=MOST_STEPS)
    result = _in_gauge(found, wide, reference)
    missed = (torch.maximum(found.excess, found.noise) > TOLERANCE).any(dim=1)
    for index in missed.nonzero().flatten().tolist():
        exact = align(best_rank(X.of_client(index), rank), reference)
        result.B[index], result.A[index] = exact.B, exact.A
    return result


def _in_gauge(found: Ritz, wide: bool, reference: Factors) -> Factors:
    """Return X V V^T with A = c R V^T, R in O(r) as near to the reference as possible (Procrustes), c = ROW_NORM."""
    left, right = found.XV, found.V
    if wide:
        right, small = torch.linalg.qr(found.XV)
        left = found.V @ small.mT
    U, _, Vh = torch.linalg.svd((reference.A.to(right.dtype) @ right).to(torch.float64))
    turn: Tensor = (U @ Vh).to(right.dtype)
    return Factors(B=left @ turn.mT / ROW_NORM, A=turn @ right.mT * ROW_NORM)
