"""The gradient of a client's validation loss at its start, as the derivative of that loss along remembered deviations.

With G the gradient in product space (m x n) and a start dW = B A, a client knows dL/dB = G A^T and dL/dA = B^T G
without ever forming G. For a deviation D the server needs <G, D>. With A^+ = A^T (A A^T)^-1 and
B^+ = (B^T B + eps I)^-1 B^T it writes D's part in the tangent space of rank-r matrices at the start as
delta_B A + B delta_A, delta_B = D A^+, delta_A = B^+ (D - D A^+ A), so that
<G, P_T D> = <dL/dB, delta_B> + <dL/dA, delta_A>: an inner product of adapter-sized vectors, which count sketches keep
in expectation (Charikar et al. 2002; variance at most |g|^2 |delta|^2 / size). Read the other way round it is the inner
product of D with a matrix of rank 2 r that depends on the client alone (:func:`pulled_back`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapters.adapter import HEAD, Adapter
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import Factors
from models.lowrank.mixtures import distinct_terms

GRADIENT_KINDS = ("off", "sketch", "adapter")
WEIGHTS = "weights"
SKETCH_SEED = 20_606
DAMPING = 1e-2

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class GradientSpec:
    """Which gradient a train reply holds, and in which form.

    Attributes:
        kind: ``off``; of the validation loss at the start, by the adapter's parts, a ``sketch`` of ``size`` numbers per
            part or all numbers of the ``adapter``; or what the client half of the method computes of the frozen
            ``weights``, as factors of rank ``size`` (:mod:`models.adapters.weight_gradient`).
        size: numbers of a sketch per part (module kind or head), or the rank.
    """

    kind: str = "off"
    size: int = 0

    def shapes(self, adapter: Adapter) -> dict[str, tuple[int, ...]]:
        """Return part -> shape of what travels for a start of the shape of ``adapter``."""
        if self.kind == "off":
            return {}
        if self.kind == WEIGHTS:
            return {kind: (packed_length(factors, self.size),) for kind, factors in adapter.low_rank.items()}
        lengths = {part: vector.numel() for part, vector in part_vectors(adapter).items()}
        return {part: (length if self.kind == "adapter" else self.size,) for part, length in lengths.items()}

    def compress(self, vectors: Parts) -> dict[str, Tensor]:
        """Return what travels: ``vectors`` (..., length) themselves, or their sketches (..., size)."""
        if self.kind == "adapter":
            return dict(vectors)
        return {part: count_sketch(vector, self.size, part) for part, vector in vectors.items()}

    def expanded(self, sent: Parts, like: AdapterBatch) -> AdapterBatch:
        """Return the transpose of :meth:`compress` of what n clients sent, in the shape of ``like``."""
        pieces: dict[str, Tensor] = {}
        for part, vector in part_vectors(like).items():
            pieces[part] = sent[part] if self.kind == "adapter" else _unsketched(sent[part], vector.shape[-1], part)
        low_rank = {}
        for kind, factors in like.low_rank.items():
            B, A = torch.tensor_split(pieces[kind], [factors.B.shape[-3:].numel()], dim=-1)
            low_rank[kind] = Factors(B.reshape(factors.B.shape), A.reshape(factors.A.shape))
        return AdapterBatch(low_rank, pieces[HEAD].reshape(like.head.shape))


NO_GRADIENT = GradientSpec()


def packed_length(factors: Factors, rank: int) -> int:
    """Return L (m + n) r, the numbers of factors of another rank for the same modules."""
    *layers, m, n = factors.shape
    return math.prod(layers) * (m + n) * rank


def part_vectors(adapter: Adapter | AdapterBatch) -> dict[str, Tensor]:
    """Flatten an adapter-shaped container by part, B before A; leading batch dimensions of the factors stay.

    Each module kind's (..., L, m, r) and (..., L, r, n) become (..., L (m + n) r); the head becomes (..., C (d + 1)).
    """
    vectors = {
        kind: torch.cat([factors.B.flatten(start_dim=-3), factors.A.flatten(start_dim=-3)], dim=-1)
        for kind, factors in adapter.low_rank.items()
    }
    return vectors | {HEAD: adapter.head.flatten(start_dim=-2)}


def count_sketch(vectors: Tensor, size: int, part: str) -> Tensor:
    """Sketch vectors (..., length) to (..., size): every coordinate is added, with a random sign, to a random bucket.

    Buckets and signs depend on ``size``, the length and the part's name alone, so server and clients agree on them.
    """
    buckets, signs = _hashes(vectors.shape[-1], size, part)
    sketch = torch.zeros(*vectors.shape[:-1], size, dtype=vectors.dtype)
    return sketch.index_add_(-1, buckets, vectors * signs.to(vectors.dtype))


def _unsketched(sketches: Tensor, length: int, part: str) -> Tensor:
    """Return the transpose of :func:`count_sketch`, (..., length)."""
    buckets, signs = _hashes(length, sketches.shape[-1], part)
    return sketches[..., buckets] * signs.to(sketches.dtype)


@functools.lru_cache(maxsize=64)
def _hashes(length: int, size: int, part: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SKETCH_SEED + sum(map(ord, part)))
    buckets = torch.randint(0, size, (length,), generator=generator)
    return buckets, torch.randint(0, 2, (length,), generator=generator) * 2 - 1


def pulled_back(gradient: Parts, starts: AdapterBatch, spec: GradientSpec) -> AdapterBatch:
    """Return the gradients in product space, whose inner product with a deviation is the derivative along it.

    G = g_B A^+^T + B^+^T g_A (I - A^+ A), of rank 2 r, with g_B, g_A the dL/dB, dL/dA that were sent. A sketch S g is
    replaced by S^T S g: <S g, S delta> = <S^T S g, delta>.

    Args:
        gradient: part -> what n clients sent, (n, ...).
        starts: those clients' n starts.
        spec: its form.
    """
    sent = spec.expanded(gradient, starts)
    low_rank = {kind: _pulled_back(factors, sent.low_rank[kind]) for kind, factors in starts.low_rank.items()}
    return AdapterBatch(low_rank, sent.head)


def _pulled_back(start: Factors, sent: Factors) -> Factors:
    A, B = start.A.double(), start.B.double()
    right = torch.linalg.solve(A @ A.mT, A)
    gram = B.mT @ B
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None].clamp_min(1e-12)
    left = torch.linalg.solve(gram + DAMPING * scale * torch.eye(B.shape[-1], dtype=B.dtype), B.mT).mT
    rows = sent.A.double()
    outside = rows - (rows @ right.mT) @ A
    return Factors(B=torch.cat([sent.B, left.float()], dim=-1), A=torch.cat([right, outside], dim=-2).float())


def slopes_along(gradients: AdapterBatch, deviations: Sequence[Adapter]) -> dict[str, Tensor]:
    """Return by part the inner products (n, N) of n gradients and N deviations.

    Args:
        gradients: n of them, as :func:`pulled_back` makes it.
        deviations: N adapters, whose ranks may differ; factors that several have in common are multiplied once.
    """
    slopes = {}
    for kind, of_kind in gradients.low_rank.items():
        terms = [deviation.low_rank[kind] for deviation in deviations]
        columns, membership = distinct_terms(terms)
        slopes[kind] = _inner_products(of_kind, columns) @ membership.T
    heads = torch.stack([deviation.head for deviation in deviations])
    return slopes | {HEAD: gradients.head.flatten(1) @ heads.flatten(1).T}


def _inner_products(gradients: Factors, columns: Factors) -> Tensor:
    """Return <G_i, b_s a_s^T> summed over layers, (n, S), for G (n, L, m, k) and columns (L, m, S)."""
    count, layers, m, k = gradients.B.shape
    left = gradients.B.permute(1, 0, 3, 2).reshape(layers, count * k, m) @ columns.B
    right = gradients.A.transpose(0, 1).reshape(layers, count * k, -1) @ columns.A.mT
    return left.mul_(right).sum(dim=0).view(count, k, -1).sum(dim=1)
