"""Adapters that share the factor A, so that the average of B is the average of B A and one sum carries a whole movement.

A is that of the fresh adapter, which follows from the run's seed (FFA-LoRA; Sun et al. 2024). Of a movement a client
tells B and the head: m r numbers a module in place of the (m + n) r of a product, which matters where every number gets
noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.adapters.adapter import HEAD, Adapter
from models.lowrank.factors import Factors


def in_frame(adapter: Adapter, frame: Adapter) -> Adapter:
    """Return the adapter with the A of ``frame``: the same product where its rows lie in the span of that A's.

    Args:
        adapter: of any rank.
        frame: the fresh adapter.
    """
    low_rank = {}
    for kind, one in frame.low_rank.items():
        A, own = one.A.double(), adapter.low_rank[kind]
        B = own.B.double() @ (own.A.double() @ torch.linalg.pinv(A))
        low_rank[kind] = Factors(B=B.to(one.B.dtype), A=one.A)
    return Adapter(low_rank, adapter.head)


def movement(start: Adapter, end: Adapter) -> dict[str, Tensor]:
    """Return what training changed of B, by kind (blocks, m, r), and of the head; both have the same A."""
    moved = {kind: end.low_rank[kind].B - one.B for kind, one in sorted(start.low_rank.items())}
    return {HEAD: end.head - start.head, **moved}


def moved(start: Adapter, step: Mapping[str, Tensor]) -> Adapter:
    """Return ``start`` after a movement: the inverse of :func:`movement`."""
    low_rank = {
        kind: Factors(B=(one.B.double() + step[kind].double()).to(one.B.dtype), A=one.A)
        for kind, one in start.low_rank.items()
    }
    return Adapter(low_rank, (start.head.double() + step[HEAD].double()).to(start.head.dtype))
