"""What all generators G_phi share: the contract, shapes and layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.adapters.adapter import HEAD, Adapter
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import ROW_NORM, Factors
from models.lowrank.mixtures import distinct_terms

TYPICAL_ENTRY = 1e-2


class Shape(NamedTuple):
    """The L = ``blocks`` delta weights m x n of a kind."""

    blocks: int
    m: int
    n: int


class Products(NamedTuple):
    """Inner products of one part of S generated deviations, summed over the blocks.

    ``squares`` (S,) holds ||G(s)||^2, ``inners`` (S, N) holds <G(s), D_j>.
    """

    squares: Tensor
    inners: Tensor


@dataclass(frozen=True, eq=False)
class StackedMemory:
    """N remembered deviations, laid out so that one matmul per kind meets them all, what they share once.

    Attributes:
        low_rank: kind -> the S different columns of the B_j (L, m, S) and rows of the A_j (L, S, n).
        membership: kind -> how often each of them is in each deviation, (N, S).
        heads: (N, classes, width + 1).
    """

    low_rank: dict[str, Factors]
    membership: dict[str, Tensor]
    heads: Tensor

    @classmethod
    def of(cls, batch: AdapterBatch) -> StackedMemory:
        """Lay out deviations; each, end - anchor, has two halves, and many have the second one in common."""
        low_rank, membership = {}, {}
        for kind, f in batch.low_rank.items():
            terms = [Factors(B, A) for B, A in zip(f.B, f.A, strict=True)]
            low_rank[kind], counts = distinct_terms(terms)
            membership[kind] = counts.to(f.B.dtype)
        return cls(low_rank, membership, batch.head)

    def double(self) -> StackedMemory:
        """Return it in float64."""
        low_rank = {kind: factors.to(torch.float64) for kind, factors in self.low_rank.items()}
        return StackedMemory(
            low_rank, {kind: one.double() for kind, one in self.membership.items()}, self.heads.double()
        )

    def fold(self, kind: str, products: Tensor) -> Tensor:
        """Sum (..., S) over the columns of each deviation: (..., N)."""
        return products @ self.membership[kind].T

    def gram(self) -> dict[str, Tensor]:
        """Return <D_i, D_j> (N, N) by part."""
        parts = {}
        for kind, f in self.low_rank.items():
            met = ((f.B.mT @ f.B) * (f.A @ f.A.mT)).sum(dim=0)
            parts[kind] = self.fold(kind, self.fold(kind, met).T)
        heads = self.heads.flatten(1)
        return parts | {HEAD: heads @ heads.T}


class Generator(nn.Module):
    """G_phi: the signature of a client -> its deviation from the anchor.

    A fresh generator returns exactly zero (every product and the head), and gradients flow all the same. The
    inputs are standardised signatures of a few dozen numbers; each generator normalises what it makes of them
    (:func:`make_trunk`), so that a signature far from the others cannot produce a huge adapter.
    """

    def forward(self, inputs: Tensor) -> AdapterBatch:
        """Return the deviations for ``inputs`` (N, k)."""
        raise NotImplementedError

    def seed(self, memory: AdapterBatch) -> None:
        """Take scales, and where there are any the directions to start from, from remembered deviations.

        Meant for a fresh generator, whose output stays zero; it makes the learning rate independent of the task.
        """
        raise NotImplementedError

    def products(self, inputs: Tensor, memory: StackedMemory) -> dict[str, Products]:
        """Return the products with the memory by part, a part being a kind or ``head``.

        A generator whose deviations have more structure than factors may have a faster way.
        """
        return batch_products(self(inputs), memory)


def batch_products(batch: AdapterBatch, memory: StackedMemory) -> dict[str, Products]:
    """Return ||G(s)||^2 = sum((B^T B) * (A A^T)) and <G(s), D_j> = sum((B^T B_j) * (A A_j^T)) by part.

    For S deviations of rank r and a memory of rank R in all it holds (L, S r, R) at a time and no m x n matrix.
    """
    parts = {}
    for kind, f in batch.low_rank.items():
        stacked = memory.low_rank[kind]
        squares = ((f.B.mT @ f.B) * (f.A @ f.A.mT)).sum(dim=(1, 2, 3))
        left = f.B.permute(1, 0, 3, 2).flatten(1, 2) @ stacked.B
        right = f.A.transpose(0, 1).flatten(1, 2) @ stacked.A.mT
        met = memory.fold(kind, (left * right).sum(dim=0))
        parts[kind] = Products(squares, met.reshape(len(squares), f.rank, -1).sum(dim=1))
    head = batch.head.flatten(1)
    return parts | {HEAD: Products(head.square().sum(dim=1), head @ memory.heads.flatten(1).T)}


def kind_shapes(template: Adapter) -> dict[str, Shape]:
    """Return the shape of every kind, in the order of their names; the template's rank plays no part."""
    kinds = {kind: template.low_rank[kind] for kind in sorted(template.low_rank)}
    return {kind: Shape(f.B.shape[0], f.B.shape[1], f.A.shape[2]) for kind, f in kinds.items()}


def slot(kind: str) -> str:
    """Return the name of a kind in a ModuleDict or ParameterDict, where a dot is not allowed."""
    return kind.replace(".", "/")


def make_trunk(input_size: int, hidden: int) -> nn.Sequential:
    """Return signature (N, k) -> code (N, hidden).

    The normalisation comes after the first linear layer: of three inputs it would leave one dimension.
    """
    return nn.Sequential(
        nn.Linear(input_size, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
    )


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that starts as the zero function."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Scales(nn.Module):
    """Fixed scales by part, so that networks put out numbers of order 1 and learn at one rate everywhere.

    The rows of ``A`` come out as long as those of a fresh adapter; the entries of ``B`` and of the head start
    at ``TYPICAL_ENTRY`` and are better fitted to remembered deviations.
    """

    def __init__(self, shapes: dict[str, Shape]) -> None:
        super().__init__()
        for part in [*shapes, HEAD]:
            self.register_buffer(f"entry/{slot(part)}", torch.tensor(TYPICAL_ENTRY))

    def factors(self, kind: str, left: Tensor, right: Tensor) -> Factors:
        """Return the factors of ``left`` (N, L, m, r) and ``right`` (N, L, r, n), both of order 1."""
        return Factors(left * self.get_buffer(f"entry/{slot(kind)}"), right * (ROW_NORM / math.sqrt(right.shape[-1])))

    def head(self, entries: Tensor) -> Tensor:
        """Return the head (N, classes, width + 1) of ``entries`` of order 1."""
        return entries * self.get_buffer("entry/head")

    @torch.no_grad()
    def fit(self, memory: AdapterBatch, rank: int) -> None:
        """Fit the scales to N deviations: r columns of B of m entries b give ||B A||^2 = r m b^2 ROW_NORM^2."""
        for kind, f in memory.low_rank.items():
            square = ((f.B.mT @ f.B) * (f.A @ f.A.mT)).sum(dim=(2, 3)).mean()
            self._set(kind, square / (rank * f.B.shape[2] * ROW_NORM**2))
        self._set(HEAD, memory.head.square().mean())

    def _set(self, part: str, square: Tensor) -> None:
        if square > 0:
            self.get_buffer(f"entry/{slot(part)}").copy_(square.sqrt())
