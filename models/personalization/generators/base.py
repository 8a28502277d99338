"""What all generators G_phi share: the contract, the memory that they are taught from, shapes and layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.adapters.adapter import HEAD, Adapter
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import Factors
from models.lowrank.mixtures import distinct_terms


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
    """N remembered deviations side by side, columns that several have in common once: one matmul per kind meets all.

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
        """Stack deviations; each, end - anchor, has two halves, and many have the second one in common."""
        low_rank, membership = {}, {}
        for kind, f in batch.low_rank.items():
            low_rank[kind], counts = distinct_terms([Factors(B, A) for B, A in zip(f.B, f.A, strict=True)])
            membership[kind] = counts.to(f.B.dtype)
        return cls(low_rank, membership, batch.head)

    def double(self) -> StackedMemory:
        """Return it in float64."""
        low_rank = {kind: factors.to(torch.float64) for kind, factors in self.low_rank.items()}
        membership = {kind: counts.double() for kind, counts in self.membership.items()}
        return StackedMemory(low_rank, membership, self.heads.double())

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
    """G_phi: the embedding of a client's signature -> its deviation from the anchor.

    A fresh generator returns exactly zero (every product and the head), and gradients flow all the same. Embeddings
    are projected, standardised signatures of a few dozen numbers; each generator normalises what it makes of them
    (:func:`make_trunk`), so that a signature far from the others cannot produce a huge adapter.
    """

    def forward(self, embeddings: Tensor) -> AdapterBatch:
        """Return the deviations for ``embeddings`` (N, k)."""
        raise NotImplementedError

    def seed(self, memory: AdapterBatch) -> None:
        """Take scales, and where there are any the directions to start from, from remembered deviations.

        Meant for a fresh generator, whose output stays zero; it makes the learning rate independent of the task.
        """
        raise NotImplementedError

    def products(self, embeddings: Tensor, memory: StackedMemory) -> dict[str, Products]:
        """Return the inner products of what is generated with itself and with the memory, by part (kind or head).

        A generator whose deviations have more structure than factors may have a faster way.
        """
        return batch_products(self(embeddings), memory)


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
    return {kind: Shape(*template.low_rank[kind].shape) for kind in sorted(template.low_rank)}


def slot(kind: str) -> str:
    """Return the name of a kind in a ModuleDict or ParameterDict, where a dot is not allowed."""
    return kind.replace(".", "/")


def make_trunk(embedding_size: int, hidden: int) -> nn.Sequential:
    """Return embedding (N, k) -> code (N, hidden).

    The normalisation comes after the first linear layer: of three numbers it would leave one dimension.
    """
    return nn.Sequential(
        nn.Linear(embedding_size, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
    )


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that starts as the zero function."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
