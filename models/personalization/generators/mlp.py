"""A generator that puts out the factors themselves, with an MLP (HyperFLoRA, SDM 2024).

Without the bottleneck of the atoms it memorises a few dozen clients. The output layers of B and of the head are zero
at birth; A starts near a learned ``A`` of the block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.adapters.adapter import HEAD, Adapter
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import ROW_NORM, Factors
from models.personalization.generators.base import Generator, Shape, kind_shapes, make_trunk, slot, zero_linear

TYPICAL_ENTRY = 1e-2

Sides = dict[str, tuple[Tensor, Tensor]]
"""Kind -> B (N, L, m, r) and A (N, L, r, n) with entries of order 1, before they are scaled."""


class Scales(nn.Module):
    """Fixed scales by part, so that networks put out numbers of order 1 and learn at one rate everywhere.

    The rows of ``A`` come out as long as those of a fresh adapter; the entries of ``B`` and of the head start
    at ``TYPICAL_ENTRY`` and are better fitted to remembered deviations.
    """

    def __init__(self, shapes: dict[str, Shape]) -> None:
        super().__init__()
        for part in [*shapes, HEAD]:
            self.register_buffer(f"entry/{slot(part)}", torch.tensor(TYPICAL_ENTRY))

    def forward(self, sides: Sides, head: Tensor) -> AdapterBatch:
        """Return the deviations of ``sides`` and ``head`` (N, classes, width + 1), all of order 1."""
        low_rank = {
            kind: Factors(left * self._entry(kind), right * (ROW_NORM / math.sqrt(right.shape[-1])))
            for kind, (left, right) in sides.items()
        }
        return AdapterBatch(low_rank, head * self._entry(HEAD))

    @torch.no_grad()
    def fit(self, memory: AdapterBatch, rank: int) -> None:
        """Fit the scales to N deviations: r columns of B of m entries b give ||B A||^2 = r m b^2 ROW_NORM^2."""
        squares = {HEAD: memory.head.square().mean()}
        for kind, f in memory.low_rank.items():
            square = ((f.B.mT @ f.B) * (f.A @ f.A.mT)).sum(dim=(2, 3)).mean()
            squares[kind] = square / (rank * f.B.shape[2] * ROW_NORM**2)
        for part, square in squares.items():
            if square > 0:
                self._entry(part).copy_(square.sqrt())

    def _entry(self, part: str) -> Tensor:
        return self.get_buffer(f"entry/{slot(part)}")


class MlpGenerator(Generator):
    """Embedding -> code -> every entry of every B, A and of the head, each from a linear layer on the code."""

    def __init__(self, template: Adapter, *, embedding_size: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.shapes, self.head_shape, self.rank = kind_shapes(template), template.head.shape, rank
        self.scales = Scales(self.shapes)
        self.trunk = make_trunk(embedding_size, hidden)
        self.left, self.right, self.base = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        for kind, (blocks, m, n) in self.shapes.items():
            self.left[slot(kind)] = zero_linear(hidden, blocks * m * rank)
            self.right[slot(kind)] = zero_linear(hidden, blocks * rank * n)
            self.base[slot(kind)] = nn.Parameter(torch.randn(blocks, rank, n))
        self.head = zero_linear(hidden, math.prod(self.head_shape))

    def seed(self, memory: AdapterBatch) -> None:
        """Fit the scales to the memory."""
        self.scales.fit(memory, self.rank)

    def forward(self, embeddings: Tensor) -> AdapterBatch:
        """Return the deviations."""
        code, sides = self.trunk(embeddings), {}
        for kind, (blocks, m, n) in self.shapes.items():
            left = self.left[slot(kind)](code).unflatten(1, (blocks, m, -1))
            right = self.right[slot(kind)](code).unflatten(1, (blocks, -1, n))
            sides[kind] = left, self.base[slot(kind)] + right
        deviations: AdapterBatch = self.scales(sides, self.head(code).unflatten(1, self.head_shape))
        return deviations
