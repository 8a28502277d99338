"""The average of clients' adapters in product space, from sums of their products with public matrices.

dW_i = B_i A_i is not linear in B_i and A_i, but its products with a public matrix are. In two passes of a randomised
range finder (Halko, Martinsson and Tropp 2011, algorithm 4.1; with a warm start as PowerSGD, Vogels et al. 2019,
algorithm 1) clients tell dW_i Q, the server finds the orthonormal P that spans sum_i w_i dW_i Q, and clients tell
dW_i^T P. The average is then P (sum_i w_i dW_i^T P)^T, its projection on the range of P. Q begins with the rows of the
anchor's A, which both sides know, so that nothing but P travels down.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.lowrank.truncation import best_rank

Bases = Mapping[str, Tensor]
"""Kind of module -> (blocks, rows, columns)."""


def right_basis(anchor: Adapter, columns: int, *seed: object) -> dict[str, Tensor]:
    """Return for every kind an orthonormal Q (blocks, n, columns): the rows of the anchor's A, then random directions.

    Args:
        anchor: the public adapter that clients start from.
        columns: at least the anchor's rank; as many more as oversample it. At most n.
        seed: what random directions follow from, the same at all parties.
    """
    return {kind: _completed(one.A.mT, columns, kind, *seed) for kind, one in anchor.low_rank.items()}


def times_right(adapter: Adapter, right: Bases) -> dict[str, Tensor]:
    """Return dW Q by kind, (blocks, m, columns)."""
    return {kind: one.B.double() @ (one.A.double() @ right[kind]) for kind, one in adapter.low_rank.items()}


def times_left(adapter: Adapter, left: Bases) -> dict[str, Tensor]:
    """Return dW^T P by kind, (blocks, n, columns)."""
    return {kind: one.A.double().mT @ (one.B.double().mT @ left[kind]) for kind, one in adapter.low_rank.items()}


def orthonormal(columns: Bases) -> dict[str, Tensor]:
    """Return by kind an orthonormal basis of the range of an average dW Q."""
    return {kind: torch.linalg.qr(one.double())[0] for kind, one in columns.items()}


def from_two_passes(left: Bases, rows: Bases, head: Tensor, rank: int) -> Adapter:
    """Return the best adapter of rank ``rank`` of P Z^T.

    Args:
        left: P by kind, orthonormal.
        rows: Z = the average of dW_i^T P by kind, (blocks, n, columns).
        head: the average of heads, (classes, width + 1).
        rank: of the result, at most the columns of P.
    """
    return Adapter({kind: _best(left[kind], rows[kind].mT, rank) for kind in left}, head)


def _best(B: Tensor, A: Tensor, rank: int) -> Factors:
    return best_rank(Factors(B=B, A=A), rank).to(torch.float32)


def _completed(known: Tensor, columns: int, *seed: object) -> Tensor:
    """Return an orthonormal basis of ``known`` (blocks, n, r) and of random directions, (blocks, n, columns)."""
    blocks, length, rank = known.shape
    generator = torch.Generator().manual_seed(derive_seed(*map(str, seed)))
    random = torch.randn(blocks, length, max(columns - rank, 0), generator=generator, dtype=torch.float64)
    scale = known.double().norm(dim=-2, keepdim=True).clamp_min(1e-12)
    basis: Tensor = torch.linalg.qr(torch.cat([known.double() / scale, random], dim=-1)[..., :columns])[0]
    return basis
