"""Factors per attention head of the backbone (the idea of HyRA): heads share a hypernetwork, not their output."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

from models.adapters.adapter import Adapter
from models.adapters.batch import AdapterBatch
from models.personalization.generators.base import Generator, Scales, Shape, kind_shapes, make_trunk, slot, zero_linear


class GroupedFactors(nn.Module):
    """B in groups of m / g output rows, one per (layer, group), and one A per layer, which its groups share.

    h_lg = silu( code + U e_lg / ||e_lg|| sqrt(hidden) ) with U shared by all kinds; B's rows of group g are
    W_lg h_lg with an own W_lg, zero at birth; A_l = A_l^0 + V mean_g h_lg.
    """

    def __init__(self, shape: Shape, *, rank: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.shape, self.hidden, self.rank = shape, hidden, rank
        groups = num_heads if shape.m % num_heads == 0 else 1
        self.embeddings = nn.Parameter(torch.randn(shape.blocks, groups, hidden))
        self.left = nn.Parameter(torch.zeros(shape.blocks, groups, hidden, shape.m // groups * rank))
        self.right = zero_linear(hidden, rank * shape.n)
        self.base = nn.Parameter(torch.randn(shape.blocks, rank, shape.n))

    def forward(self, code: Tensor, shared: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return B (N, L, m, r) and A (N, L, r, n), up to their scales, for ``code`` (N, hidden)."""
        embedded = shared(normalize(self.embeddings, dim=-1) * math.sqrt(self.hidden))
        h = silu(code[:, None, None, :] + embedded)
        rows = torch.einsum("nlgh,lgho->nlgo", h, self.left)
        left = rows.reshape(len(code), self.shape.blocks, self.shape.m, self.rank)
        right: Tensor = self.right(h.mean(dim=2))
        return left, self.base + right.reshape(len(code), *self.base.shape)


class HeadwiseGenerator(Generator):
    """Signature -> code; (code, head embedding) -> that head's rows of B.

    Kinds whose m is no multiple of ``num_heads`` are one group.
    """

    def __init__(self, template: Adapter, *, input_size: int, rank: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.shapes, self.head_shape, self.rank = kind_shapes(template), template.head.shape, rank
        self.scales = Scales(self.shapes)
        self.trunk = make_trunk(input_size, hidden)
        self.shared = nn.Linear(hidden, hidden)
        self.grouped = nn.ModuleDict(
            {
                slot(kind): GroupedFactors(shape, rank=rank, hidden=hidden, num_heads=num_heads)
                for kind, shape in self.shapes.items()
            }
        )
        self.head = zero_linear(hidden, math.prod(self.head_shape))

    def seed(self, memory: AdapterBatch) -> None:
        """Fit the scales to the memory."""
        self.scales.fit(memory, self.rank)

    def forward(self, inputs: Tensor) -> AdapterBatch:
        """Return the deviations."""
        code = self.trunk(inputs)
        grouped = {kind: self.grouped[slot(kind)](code, self.shared) for kind in self.shapes}
        low_rank = {kind: self.scales.factors(kind, left, right) for kind, (left, right) in grouped.items()}
        return AdapterBatch(low_rank, self.scales.head(self.head(code).unflatten(1, self.head_shape)))
