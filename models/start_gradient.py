"""The gradient of a client's validation loss at its start, as the derivative of that loss along remembered deviations.

With G the gradient in product space (m x n) and a start dW = B A, a client knows dL/dB = G A^T and dL/dA = B^T G
without ever forming G. For a deviation D the server needs <G, D>. With A^+ = A^T (A A^T)^-1 and
B^+ = (B^T B + eps I)^-1 B^T it writes D's part in the tangent space of rank-r matrices at the start as
delta_B A + B delta_A, delta_B = D A^+, delta_A = B^+ (D - D A^+ A), so that
<G, P_T D> = <dL/dB, delta_B> + <dL/dA, delta_A>: an inner product of adapter-sized vectors, which count sketches keep
in expectation (Charikar et al. 2002; variance at most |g|^2 |delta|^2 / size).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapter import HEAD, Adapter, resized
from models.factor_stack import FactorStack, LinearMap
from models.low_rank import Factors

GRADIENT_KINDS = ("off", "sketch", "adapter")
SKETCH_SEED = 20_606
DAMPING = 1e-2

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class GradientSpec:
    """What a train reply is to tell of the validation gradient.

    Attributes:
        kind: ``off``; ``sketch``, ``size`` numbers per part; or ``adapter``, all numbers.
        size: numbers of a sketch per part (module kind or head).
    """

    kind: str = "off"
    size: int = 0

    def shapes(self, adapter: Adapter) -> dict[str, tuple[int, ...]]:
        """Return part -> shape of what travels for a start of the shape of ``adapter``."""
        if self.kind == "off":
            return {}
        lengths = {part: vector.numel() for part, vector in part_vectors(adapter).items()}
        return {part: (length if self.kind == "adapter" else self.size,) for part, length in lengths.items()}

    def compress(self, vectors: Parts) -> dict[str, Tensor]:
        """Return what travels: ``vectors`` (..., length) themselves, or their sketches (..., size)."""
        if self.kind == "adapter":
            return dict(vectors)
        return {part: count_sketch(vector, self.size, part) for part, vector in vectors.items()}


NO_GRADIENT = GradientSpec()


def part_vectors(adapter: Adapter) -> dict[str, Tensor]:
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


@functools.lru_cache(maxsize=64)
def _hashes(length: int, size: int, part: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SKETCH_SEED + sum(map(ord, part)))
    buckets = torch.randint(0, size, (length,), generator=generator)
    return buckets, torch.randint(0, 2, (length,), generator=generator) * 2 - 1


def tangent_coordinates(start: Adapter, low_rank: Mapping[str, LinearMap], heads: Tensor) -> dict[str, Tensor]:
    """Return by part the coordinates (..., length) of deviations in the tangent space at ``start``.

    Args:
        start: factors (L, m, r) and (L, r, n), or (..., L, m, r) and (..., L, r, n): one start for each deviation.
        low_rank: kind -> the deviations (..., L, m, n), multiplied only.
        heads: their heads (..., C, d + 1).
    """
    pairs = {kind: _tangent(factors, low_rank[kind]) for kind, factors in start.low_rank.items()}
    return part_vectors(Adapter(pairs, heads))


def _tangent(start: Factors, deviation: LinearMap) -> Factors:
    """Return D A+ and B+ (D - D A+ A), where A+ and B+ are computed in float64 and multiplied in D's precision."""
    A, B = start.A.double(), start.B.double()
    right = torch.linalg.solve(A @ A.mT, A).mT
    gram = B.mT @ B
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None].clamp_min(1e-12)
    left = torch.linalg.solve(gram + DAMPING * scale * torch.eye(B.shape[-1], dtype=B.dtype), B.mT)
    delta_B = deviation.times(_for_each(right, deviation))
    rows = deviation.transposed_times(_for_each(left.mT, deviation)).mT.double()
    outside = rows - (left @ delta_B.double()) @ A
    return Factors(B=delta_B.float(), A=outside.float())


def _for_each(vectors: Tensor, deviation: LinearMap) -> Tensor:
    return vectors.to(deviation.dtype).expand(*deviation.batch, -1, -1)


def side_by_side(deviations: Sequence[Adapter]) -> tuple[dict[str, LinearMap], Tensor]:
    """Return N deviations, whose ranks may differ, as maps (N, L, m, n) by kind, and their heads (N, C, d + 1)."""
    rank = max(one.rank for one in deviations)
    padded = [resized(one, rank) for one in deviations]
    maps: dict[str, LinearMap] = {}
    for kind in padded[0].low_rank:
        stacks = [one.low_rank[kind] for one in padded]
        maps[kind] = FactorStack.of(
            Factors(torch.stack([one.B for one in stacks]), torch.stack([one.A for one in stacks]))
        )
    return maps, torch.stack([one.head for one in padded])


def directional_derivatives(
    gradient: Parts, start: Adapter, deviations: Sequence[Adapter], spec: GradientSpec
) -> dict[str, Tensor]:
    """Return by part the derivatives (N,) of the client's validation loss along N deviations from its start."""
    coordinates = spec.compress(tangent_coordinates(start, *side_by_side(deviations)))
    return {part: coordinates[part] @ vector for part, vector in gradient.items()}
