"""Full factors from the signature by one MLP, as HyperFLoRA (SDM 2024) makes them from class presence.

It has no bottleneck: with a few dozen clients it memorises them, and is here to be compared with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.adapters.adapter import Adapter
from models.adapters.batch import AdapterBatch
from models.personalization.generators.base import Generator, Scales, kind_shapes, make_trunk, slot, zero_linear


class MlpGenerator(Generator):
    """Signature -> code -> every entry of every B, A and of the head, each from a linear layer of its own.

    The layers of B and of the head are zero at birth; A starts near a learned ``A`` of the block.
    """

    def __init__(self, template: Adapter, *, input_size: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.shapes, self.head_shape, self.rank = kind_shapes(template), template.head.shape, rank
        self.scales = Scales(self.shapes)
        self.trunk = make_trunk(input_size, hidden)
        self.left, self.right, self.base = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        for kind, (blocks, m, n) in self.shapes.items():
            self.left[slot(kind)] = zero_linear(hidden, blocks * m * rank)
            self.right[slot(kind)] = zero_linear(hidden, blocks * rank * n)
            self.base[slot(kind)] = nn.Parameter(torch.randn(blocks, rank, n))
        self.head = zero_linear(hidden, math.prod(self.head_shape))

    def seed(self, memory: AdapterBatch) -> None:
        """Fit the scales to the memory."""
        self.scales.fit(memory, self.rank)

    def forward(self, inputs: Tensor) -> AdapterBatch:
        """Return the deviations."""
        code, low_rank = self.trunk(inputs), {}
        for kind, (blocks, m, n) in self.shapes.items():
            left = self.left[slot(kind)](code).unflatten(1, (blocks, m, -1))
            right = self.right[slot(kind)](code).unflatten(1, (blocks, -1, n))
            low_rank[kind] = self.scales.factors(kind, left, self.base[slot(kind)] + right)
        return AdapterBatch(low_rank, self.scales.head(self.head(code).unflatten(1, self.head_shape)))
