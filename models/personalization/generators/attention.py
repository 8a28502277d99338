"""Factors from a transformer over layer tokens (the idea of HyperAdaLoRA): layers are decided together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.adapters.adapter import HEAD, Adapter
from models.adapters.batch import AdapterBatch
from models.personalization.generators.base import Generator, Scales, kind_shapes, make_trunk, slot, zero_linear


class AttentionGenerator(Generator):
    """One token per adapted module and one for the head; one encoder layer; output layers per kind.

    token = embedding of the block + embedding of the kind + code of the signature. The output layers of B
    and of the head are zero at birth; A starts near a learned ``A`` of the block.
    """

    def __init__(self, template: Adapter, *, input_size: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.shapes, self.head_shape, self.rank = kind_shapes(template), template.head.shape, rank
        self.scales = Scales(self.shapes)
        self.trunk = make_trunk(input_size, hidden)
        self.blocks = nn.Parameter(0.5 * torch.randn(max(s.blocks for s in self.shapes.values()), hidden))
        self.kinds = nn.ParameterDict({slot(kind): 0.5 * torch.randn(hidden) for kind in [*self.shapes, HEAD]})
        self.encoder = nn.TransformerEncoderLayer(
            hidden, _attention_heads(hidden), 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.left, self.right, self.base = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        for kind, (blocks, m, n) in self.shapes.items():
            self.left[slot(kind)] = zero_linear(hidden, m * rank)
            self.right[slot(kind)] = zero_linear(hidden, rank * n)
            self.base[slot(kind)] = nn.Parameter(torch.randn(blocks, rank, n))
        self.head = zero_linear(hidden, math.prod(self.head_shape))

    def seed(self, memory: AdapterBatch) -> None:
        """Fit the scales to the memory."""
        self.scales.fit(memory, self.rank)

    def forward(self, inputs: Tensor) -> AdapterBatch:
        """Return the deviations."""
        tokens = torch.cat([*(self._embedding(kind) for kind in self.shapes), self.kinds[HEAD][None]])
        encoded = self.encoder(self.trunk(inputs)[:, None, :] + tokens)
        *by_kind, head = encoded.split([*(s.blocks for s in self.shapes.values()), 1], dim=1)
        low_rank = {}
        for (kind, (_, m, n)), own in zip(self.shapes.items(), by_kind, strict=True):
            left = self.left[slot(kind)](own).unflatten(2, (m, -1))
            right = self.right[slot(kind)](own).unflatten(2, (-1, n))
            low_rank[kind] = self.scales.factors(kind, left, self.base[slot(kind)] + right)
        return AdapterBatch(low_rank, self.scales.head(self.head(head[:, 0]).unflatten(1, self.head_shape)))

    def _embedding(self, kind: str) -> Tensor:
        """Return the embeddings (L, hidden) of the modules of a kind."""
        own: Tensor = self.kinds[slot(kind)]
        return self.blocks[: self.shapes[kind].blocks] + own


def _attention_heads(hidden: int) -> int:
    """Return the number of heads of the generator's own attention: the largest of 4, 2, 1 that divides ``hidden``."""
    return next(count for count in (4, 2, 1) if hidden % count == 0)
