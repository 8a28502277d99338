"""What both halves of HetLoRA know of pruning: which columns go, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def kept_rank(rank: int, share: float) -> int:
    """Return max(1, floor(gamma r)), the rank that is left of ``rank`` after pruning with gamma = ``share``."""
    return max(1, int(share * rank))


def tail_size(pairs: Iterable[tuple[Tensor, Tensor]], kept: int) -> Tensor:
    """Return sum_modules ||B[:, k:]||_F ||A[k:, :]||_F, a number; differentiable, with gradient 0 where B is 0.

    Args:
        pairs: B (..., m, r) and A (..., r, n) of modules or of stacks of them.
        kept: k, columns of B and rows of A that do not count.
    """
    tails, norm = [(B[..., kept:], A[..., kept:, :]) for B, A in pairs], torch.linalg.vector_norm
    return torch.stack([(norm(B, dim=(-2, -1)) * norm(A, dim=(-2, -1))).sum() for B, A in tails]).sum()
