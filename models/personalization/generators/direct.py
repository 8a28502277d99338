"""Generators that put out the factors themselves, to be compared with the atoms: by MLP, by layer and by head.

Without a bottleneck they memorise a few dozen clients. The output layers of B and of the head are zero at birth;
A starts near a learned ``A`` of the block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

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


class DirectGenerator(Generator):
    """Embedding -> code -> factors and head; a subclass says how a code is decoded."""

    head: nn.Linear

    def __init__(self, template: Adapter, *, embedding_size: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.shapes, self.head_shape, self.rank = kind_shapes(template), template.head.shape, rank
        self.scales = Scales(self.shapes)
        self.trunk = make_trunk(embedding_size, hidden)

    def decode(self, code: Tensor) -> tuple[Sides, Tensor]:
        """Return B and A of every kind, and the code (N, hidden) of the head, for ``code`` (N, hidden)."""
        raise NotImplementedError

    def seed(self, memory: AdapterBatch) -> None:
        """Fit the scales to the memory."""
        self.scales.fit(memory, self.rank)

    def forward(self, embeddings: Tensor) -> AdapterBatch:
        """Return the deviations."""
        sides, code = self.decode(self.trunk(embeddings))
        deviations: AdapterBatch = self.scales(sides, self.head(code).unflatten(1, self.head_shape))
        return deviations


class MlpGenerator(DirectGenerator):
    """Every entry of every B, A and of the head from a linear layer on the code (HyperFLoRA, SDM 2024)."""

    def __init__(self, template: Adapter, *, embedding_size: int, rank: int, hidden: int) -> None:
        super().__init__(template, embedding_size=embedding_size, rank=rank, hidden=hidden)
        self.left, self.right, self.base = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        for kind, (blocks, m, n) in self.shapes.items():
            self.left[slot(kind)] = zero_linear(hidden, blocks * m * rank)
            self.right[slot(kind)] = zero_linear(hidden, blocks * rank * n)
            self.base[slot(kind)] = nn.Parameter(torch.randn(blocks, rank, n))
        self.head = zero_linear(hidden, math.prod(self.head_shape))

    def decode(self, code: Tensor) -> tuple[Sides, Tensor]:
        """See the class."""
        sides = {}
        for kind, (blocks, m, n) in self.shapes.items():
            left = self.left[slot(kind)](code).unflatten(1, (blocks, m, -1))
            right = self.right[slot(kind)](code).unflatten(1, (blocks, -1, n))
            sides[kind] = left, self.base[slot(kind)] + right
        return sides, code


class AttentionGenerator(DirectGenerator):
    """A transformer layer over one token per adapted module and one for the head (the idea of HyperAdaLoRA).

    token = embedding of the block + embedding of the kind + code of the signature; output layers per kind.
    """

    def __init__(self, template: Adapter, *, embedding_size: int, rank: int, hidden: int) -> None:
        super().__init__(template, embedding_size=embedding_size, rank=rank, hidden=hidden)
        self.blocks = nn.Parameter(0.5 * torch.randn(max(s.blocks for s in self.shapes.values()), hidden))
        self.kinds = nn.ParameterDict({slot(kind): 0.5 * torch.randn(hidden) for kind in [*self.shapes, HEAD]})
        heads = next(count for count in (4, 2, 1) if hidden % count == 0)
        self.encoder = nn.TransformerEncoderLayer(
            hidden, heads, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.left, self.right, self.base = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        for kind, (blocks, m, n) in self.shapes.items():
            self.left[slot(kind)] = zero_linear(hidden, m * rank)
            self.right[slot(kind)] = zero_linear(hidden, rank * n)
            self.base[slot(kind)] = nn.Parameter(torch.randn(blocks, rank, n))
        self.head = zero_linear(hidden, math.prod(self.head_shape))

    def decode(self, code: Tensor) -> tuple[Sides, Tensor]:
        """See the class."""
        tokens = [self.blocks[: shape.blocks] + self.kinds[slot(kind)] for kind, shape in self.shapes.items()]
        encoded = self.encoder(code[:, None, :] + torch.cat([*tokens, self.kinds[HEAD][None]]))
        *by_kind, head = encoded.split([*(s.blocks for s in self.shapes.values()), 1], dim=1)
        sides = {}
        for (kind, (_, m, n)), codes in zip(self.shapes.items(), by_kind, strict=True):
            left = self.left[slot(kind)](codes).unflatten(2, (m, -1))
            right = self.right[slot(kind)](codes).unflatten(2, (-1, n))
            sides[kind] = left, self.base[slot(kind)] + right
        return sides, head[:, 0]


class GroupedFactors(nn.Module):
    """B in groups of m / g output rows, one per (layer, group), and one A per layer, which its groups share.

    h_lg = silu( code + U e_lg / ||e_lg|| sqrt(hidden) ) with U shared by all kinds; B's rows of group g are
    W_lg h_lg, W_lg zero at birth; A_l = A_l^0 + V mean_g h_lg.
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


class HeadwiseGenerator(DirectGenerator):
    """Rows of B by attention head of the backbone (the idea of HyRA): heads share a network, not their output.

    Kinds whose m is no multiple of ``num_heads`` are one group.
    """

    def __init__(self, template: Adapter, *, embedding_size: int, rank: int, hidden: int, num_heads: int) -> None:
        super().__init__(template, embedding_size=embedding_size, rank=rank, hidden=hidden)
        self.shared = nn.Linear(hidden, hidden)
        self.grouped = nn.ModuleDict()
        for kind, shape in self.shapes.items():
            self.grouped[slot(kind)] = GroupedFactors(shape, rank=rank, hidden=hidden, num_heads=num_heads)
        self.head = zero_linear(hidden, math.prod(self.head_shape))

    def decode(self, code: Tensor) -> tuple[Sides, Tensor]:
        """See the class."""
        return {kind: self.grouped[slot(kind)](code, self.shared) for kind in self.shapes}, code
