"""Train one LoRA factor at a time: with the other one shared, averaging it averages B A exactly, by a single sum.

In one round clients train B and the head with a common A, in the next A and the head with a common B (RoLoRA; Chen et
al. 2024). A client sends the change of the trained factor and of the head, its movement: m r or n r numbers per module
instead of the (m + n) r of both factors, which matters when every number gets noise. Since each factor is trained in
every second round only, it moves by ``STEP`` times the average.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.adapters.adapter import HEAD, Adapter
from models.lowrank.factors import Factors

STEP = 2.0


def framed(anchor: Adapter, fresh: Adapter, side: str) -> Adapter:
    """Return the anchor with the factor that is not trained orthogonal, and as long as the fresh adapter's A.

    Args:
        anchor: the public adapter.
        fresh: the adapter before round 1, whose A stands where a product is zero.
        side: ``B`` or ``A``, the factor that clients train.
    """
    kinds = {kind: _framed(one, fresh.low_rank[kind], side) for kind, one in anchor.low_rank.items()}
    return Adapter(kinds, anchor.head)


def _framed(one: Factors, fresh: Factors, side: str) -> Factors:
    rank = one.A.shape[-2]
    length = fresh.A.double().norm(dim=-1).mean()
    left, sizes, right = torch.linalg.svd(one.B.double() @ one.A.double(), full_matrices=False)
    left, sizes, right = left[..., :rank], sizes[..., :rank], right[..., :rank, :]
    if float(sizes.max()) < 1e-9:
        return Factors(B=torch.zeros_like(one.B), A=fresh.A.to(one.A.dtype))
    if side == "B":
        B, A = left * sizes[..., None, :] / length, length * right
    else:
        B, A = length * left, sizes[..., :, None] * right / length
    return Factors(B=B.to(one.B.dtype), A=A.to(one.A.dtype))


def movement(start: Adapter, end: Adapter, side: str) -> dict[str, Tensor]:
    """Return what training changed: of the head (C, d + 1), and by kind of B (blocks, m, r) or A (blocks, r, n).

    Args:
        start, end: adapters with the same other factor.
        side: ``B`` or ``A``, the factor that was trained.
    """
    kinds = {kind: getattr(end.low_rank[kind], side) - getattr(one, side) for kind, one in start.low_rank.items()}
    return {HEAD: end.head - start.head, **dict(sorted(kinds.items()))}


def moved(start: Adapter, step: Mapping[str, Tensor], side: str, times: float = 1.0) -> Adapter:
    """Return ``start`` after ``times`` a movement of one factor, ``B`` or ``A``; once is :func:`movement`'s inverse."""
    low_rank = {}
    for kind, one in start.low_rank.items():
        after = (getattr(one, side).double() + times * step[kind].double()).to(one.B.dtype)
        low_rank[kind] = Factors(B=after, A=one.A) if side == "B" else Factors(B=one.B, A=after)
    return Adapter(low_rank, (start.head.double() + times * step[HEAD].double()).to(start.head.dtype))
