"""The default generator: a few coefficients over learned rank-1 atoms, dW_l = B_l diag(c_l) A_l.

A signature only chooses coefficients; what a deviation can look like is learned for all clients together.
That is the bottleneck which keeps the generator from memorising two dozen clients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from models.adapters.adapter import HEAD, Adapter
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import Factors
from models.personalization.generators.base import (
    Generator,
    Products,
    Shape,
    StackedMemory,
    kind_shapes,
    make_trunk,
    slot,
    zero_linear,
)

SWEEPS, RIDGE, SMALLEST_SIZE = 50, 1e-4, 1e-2


class RankOneAtoms(nn.Module):
    """K atoms b_k a_k per layer, stored with entries of order 1 and a fixed ``scale`` (L, K).

    With entries of one order, a step of Adam changes every atom by the same share of it.
    """

    scale: Tensor

    def __init__(self, shape: Shape, count: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(shape.blocks, shape.m, count))
        self.right = nn.Parameter(torch.randn(shape.blocks, count, shape.n))
        self.register_buffer("scale", torch.full((shape.blocks, count), 1 / math.sqrt(shape.m * shape.n)))

    def factors(self) -> Factors:
        """Return B (L, m, K) and A (L, K, n), one atom per column and row."""
        return Factors(self.left * self.scale[:, None, :], self.right)

    @torch.no_grad()
    def seed(self, memory: Factors) -> None:
        """Take the atoms of :func:`rank_one_atoms`; a memory of zeros changes nothing."""
        left, right, size = rank_one_atoms(memory, self.scale.shape[1])
        if size.any():
            m, n = left.shape[1], right.shape[1]
            self.left.copy_(left * math.sqrt(m))
            self.right.copy_(right.mT * math.sqrt(n))
            self.scale.copy_(size.clamp(min=SMALLEST_SIZE * float(size.max())) / math.sqrt(m * n))


class AtomGenerator(Generator):
    """Embedding -> code -> per layer K coefficients of that layer's atoms; the head likewise.

    c_l = W_kind silu(code * (1 + gain_l) + shift_l), with a learned embedding (gain_l, shift_l) of the block
    that all kinds share. W is zero at birth.
    """

    head_scale: Tensor

    def __init__(self, template: Adapter, *, embedding_size: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.shapes = kind_shapes(template)
        self.trunk = make_trunk(embedding_size, hidden)
        blocks = max(shape.blocks for shape in self.shapes.values())
        self.layers = nn.Parameter(0.5 * torch.randn(2, blocks, hidden))
        self.coefficient_heads = nn.ModuleDict({slot(kind): zero_linear(hidden, rank) for kind in self.shapes})
        self.atoms = nn.ModuleDict({slot(kind): RankOneAtoms(shape, rank) for kind, shape in self.shapes.items()})
        self.head_coefficients = zero_linear(hidden, rank)
        self.head_atoms = nn.Parameter(torch.randn(rank, *template.head.shape))
        self.register_buffer("head_scale", torch.full((rank, 1, 1), 1 / math.sqrt(template.head.numel())))

    def forward(self, embeddings: Tensor) -> AdapterBatch:
        """Return the deviations; its ``A`` is one tensor seen N times."""
        coefficients, low_rank = self.coefficients(embeddings), {}
        for kind in self.shapes:
            atoms, c = self._atoms(kind).factors(), coefficients[kind]
            low_rank[kind] = Factors(atoms.B * c[:, :, None, :], atoms.A.expand(len(embeddings), -1, -1, -1))
        return AdapterBatch(
            low_rank, torch.einsum("nk,kcw->ncw", coefficients[HEAD], self.head_atoms * self.head_scale)
        )

    def coefficients(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Return c by part: (N, L, K) for a kind, (N, K) for the head."""
        code = self.trunk(embeddings)
        gain, shift = self.layers
        mixed = silu(code[:, None, :] * (1 + gain) + shift)
        parts = {kind: self.coefficient_heads[slot(kind)](mixed[:, : s.blocks]) for kind, s in self.shapes.items()}
        return parts | {HEAD: self.head_coefficients(code)}

    def products(self, embeddings: Tensor, memory: StackedMemory) -> dict[str, Products]:
        """Return the products with the memory from those of the atoms, which all clients share.

        ||G||^2 = c^T Gram(atoms) c and <G, D_j> = sum_k c_k <atom_k, D_j>, each summed over the layers.
        """
        coefficients, parts = self.coefficients(embeddings), {}
        for kind in self.shapes:
            atoms, stacked = self._atoms(kind).factors(), memory.low_rank[kind]
            gram = (atoms.B.mT @ atoms.B) * (atoms.A @ atoms.A.mT)
            met = memory.fold(kind, (atoms.B.mT @ stacked.B) * (atoms.A @ stacked.A.mT))
            parts[kind] = _combined(coefficients[kind], gram, met)
        head = (self.head_atoms * self.head_scale).flatten(1)
        gram, met = head @ head.T, head @ memory.heads.flatten(1).T
        return parts | {HEAD: _combined(coefficients[HEAD][:, None], gram[None], met[None])}

    @torch.no_grad()
    def seed(self, memory: AdapterBatch) -> None:
        """Start from atoms that span the remembered deviations as well as K atoms can.

        Coefficients of order 1 then give typical deviations. The output stays zero on a fresh generator; a
        trained one should not be seeded again.
        """
        for kind in self.shapes:
            self._atoms(kind).seed(memory.low_rank[kind])
        _, size, right = torch.linalg.svd(memory.head.flatten(1), full_matrices=False)
        count = min(len(size), len(self.head_atoms))
        if size.any():
            width, typical = right.shape[1], size / math.sqrt(len(memory.head))
            self.head_atoms[:count] = (right[:count] * math.sqrt(width)).unflatten(1, self.head_atoms.shape[1:])
            self.head_scale.fill_(SMALLEST_SIZE * float(typical.max()) / math.sqrt(width))
            scale = typical[:count, None, None] / math.sqrt(width)
            self.head_scale[:count] = torch.maximum(scale, self.head_scale[:count])

    def _atoms(self, kind: str) -> RankOneAtoms:
        atoms = self.atoms[slot(kind)]
        if not isinstance(atoms, RankOneAtoms):
            raise TypeError(f"expected the atoms of {kind} to be RankOneAtoms, got {type(atoms).__name__}")
        return atoms


def _combined(coefficients: Tensor, gram: Tensor, met: Tensor) -> Products:
    """Return the products from c (N, L, K), the atoms' gram (L, K, K) and atoms x memory (L, K, J)."""
    squares = torch.einsum("nlk,lkj,nlj->n", coefficients, gram, coefficients)
    return Products(squares, coefficients.flatten(1) @ met.flatten(0, 1))


def rank_one_atoms(memory: Factors, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit D_j ~ sum_k c_jk b_k a_k^T to N deviations, (N, L, m, R) and (N, L, R, n), for every layer.

    The sum of the deviations will not do: they surround the anchor and cancel in it. So the singular
    directions of the D_j side by side (U) and on top of each other (V) give the cores U^T D_j V, whose entries of
    largest energy are the first atoms; alternating least squares turns these into the best rank-1 terms (CP
    decomposition of the compressed tensor, Bro and Andersson 1998).

    Returns:
        b (L, m, K) and a (L, n, K) with unit columns, and the root mean square of c_jk over j, (L, K).
    """
    left, right = memory.B.transpose(0, 1), memory.A.transpose(0, 1).mT
    U, V = _directions(left, right, count), _directions(right, left, count)
    core = (U.mT[:, None] @ left) @ (right.mT @ V[:, None])
    b, a = _largest_pairs(core.square().sum(dim=1), count)
    for _ in range(SWEEPS):
        c = _solve(torch.einsum("ljpq,lpk,lqk->ljk", core, b, a), b, a)
        b = _unit(_solve(torch.einsum("ljpq,ljk,lqk->lpk", core, c, a), c, a), b)
        a = _unit(_solve(torch.einsum("ljpq,ljk,lpk->lqk", core, c, b), c, b), a)
    c = _solve(torch.einsum("ljpq,lpk,lqk->ljk", core, b, a), b, a)
    return U @ b, V @ a, c.square().mean(dim=1).sqrt()


def _directions(left: Tensor, right: Tensor, count: int) -> Tensor:
    """Return the first ``count`` left singular vectors of [X_1 Y_1^T | X_2 Y_2^T | ...], (L, m, count).

    With Y_j = Q R they are those of [X_1 R_1^T | ...], from X (L, N, m, R) and Y (L, N, n, R).
    """
    stacked = (left @ torch.linalg.qr(right).R.mT).transpose(1, 2).flatten(2)
    U: Tensor = torch.linalg.svd(stacked, full_matrices=False).U
    return U[..., :count]


def _largest_pairs(energy: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the unit vectors (L, p, K) and (L, q, K) of the K largest entries of (L, p, q), repeated if too few."""
    p, q = energy.shape[1:]
    chosen = energy.flatten(1).argsort(dim=1, descending=True, stable=True)
    chosen = chosen[:, torch.arange(count) % (p * q)]
    return torch.eye(p).to(energy)[chosen // q].mT, torch.eye(q).to(energy)[chosen % q].mT


def _solve(met: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return met ((x^T x) * (y^T y) + ridge)^-1, the least-squares step of one factor with the others fixed."""
    normal = (x.mT @ x) * (y.mT @ y)
    ridge = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + torch.finfo(met.dtype).tiny
    eye = torch.eye(normal.shape[1]).to(normal)
    solution: Tensor = torch.linalg.solve(normal + ridge * eye, met.mT)
    return solution.mT


def _unit(columns: Tensor, previous: Tensor) -> Tensor:
    """Return the columns (L, p, K) with length 1; a column that vanished stays what it was."""
    length = columns.norm(dim=1, keepdim=True)
    return torch.where(length > 0, columns / length, previous)
