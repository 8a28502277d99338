"""A start from data: lora_A as the strongest directions of what the adapted modules read (EVA, arXiv 2410.07170).

EVA takes the leading right singular vectors of a module's inputs, less their mean, as the rows of A, with B = 0. In a
federation no one has all inputs. Client i tells of each module its number n_i of inputs, their mean mu_i and rows
F_i (k, n) with F_i^T F_i nearly their covariance; with R_i = [F_i; mu_i] the scatter of all inputs is exactly

    sum_i n_i R_i^T R_i - N mu mu^T,    N = sum_i n_i,  mu = sum_i n_i mu_i / N,

a sum of products, which is truncated as the clients' adapters are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.adapters.adapter import Adapter
from models.adapters.rank_budget import Worth
from models.lowrank.factors import ROW_NORM, Factors
from models.lowrank.product_sum import ProductSum

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel


@dataclass(frozen=True)
class InputMoments:
    """What a client's samples look like to the adapted modules.

    Attributes:
        counts: kind -> number of inputs (tokens) of every block, (blocks,).
        rows: kind -> k rows of the covariance's factor, then the mean, (blocks, k + 1, n).
    """

    counts: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]


def input_moments(model: AdaptedModel, batches: Iterable[Tensor], rank: int) -> InputMoments:
    """Run the frozen model and return the moments of what its adapted modules read; n x n numbers a module in memory.

    Args:
        model: its adapter is switched off meanwhile.
        batches: tokens behind the frozen prefix.
        rank: k; where n is smaller the last rows are zero.
    """
    counts: dict[tuple[str, int], int] = {}
    sums: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def see(kind: str, block: int, inputs: Tensor) -> None:
        x, place = inputs.detach().reshape(-1, inputs.shape[-1]).double(), (kind, block)
        squares, total = sums.get(place, (0.0, 0.0))
        counts[place] = counts.get(place, 0) + len(x)
        sums[place] = (squares + x.mT @ x, total + x.sum(dim=0))

    with model.watching_inputs(see):
        for tokens in batches:
            model.frozen_features(tokens.to(model.device))
    kinds: dict[str, list[tuple[str, int]]] = {}
    for place in sorted(sums):
        kinds.setdefault(place[0], []).append(place)
    return InputMoments(
        {kind: torch.tensor([float(counts[one]) for one in places]) for kind, places in kinds.items()},
        {
            kind: torch.stack([_rows(*sums[one], counts[one], rank) for one in places]).float().cpu()
            for kind, places in kinds.items()
        },
    )


def common_start(fresh: Adapter, told: Sequence[InputMoments]) -> tuple[Adapter, Worth]:
    """Return the adapter that all clients begin with: A from all their inputs, B = 0 and the fresh head.

    The rows of A are orthogonal and as long as those of a fresh adapter, where EVA's have length 1, so that local
    steps are as large as without it.

    Args:
        fresh: an adapter of the shape that is wanted.
        told: the moments of each client.

    Returns:
        The adapter, and the share of a module's variance that each of its rows explains (EVA's ranks follow from it).
    """
    low_rank: dict[str, Factors] = {}
    explained: dict[str, list[float]] = {}
    for kind, factors in fresh.low_rank.items():
        scatter = ProductSum()
        sizes = [one.counts[kind].double() for one in told]
        for one, size in zip(told, sizes, strict=True):
            rows = one.rows[kind].double() * size.sqrt()[:, None, None]
            scatter.add(Factors(B=rows.mT, A=rows))
        means = [one.rows[kind][:, -1:].double() * size[:, None, None] for one, size in zip(told, sizes, strict=True)]
        mean = torch.stack(means).sum(dim=0) / torch.stack(sizes).sum(dim=0).sqrt()[:, None, None]
        scatter.add(Factors(B=mean.mT, A=mean), -1.0)
        best = scatter.truncated(factors.rank)
        low_rank[kind] = Factors(B=torch.zeros_like(factors.B), A=best.A.to(factors.A))
        shares = best.B.norm(dim=-2) * ROW_NORM / _trace(scatter)[:, None]
        explained |= {f"{kind} {block}": one for block, one in enumerate(shares.tolist())}
    return Adapter(low_rank, fresh.head), explained


def _trace(scatter: ProductSum) -> Tensor:
    """Return the sum of the variances of all inputs, (blocks,), as far as the rows of clients tell them."""
    parts = [(one.B.mT * one.A).sum(dim=(-2, -1)) for one in scatter.stack().chunks()]
    return torch.stack(parts).sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)


def _rows(squares: Tensor, total: Tensor, count: int, rank: int) -> Tensor:
    """Return F (k, n) with F^T F the best approximation of the covariance, and the mean below it."""
    mean = total / count
    values, vectors = torch.linalg.eigh(squares / count - mean[:, None] * mean)
    values, vectors = values.flip(-1)[:rank].clamp_min(0.0), vectors.flip(-1)[:, :rank]
    rows = values.sqrt()[:, None] * vectors.mT
    return torch.cat([rows, rows.new_zeros(rank - len(rows), len(mean)), mean[None]])
