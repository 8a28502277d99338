from __future__ import annotations

from typing import get_args

import pytest
import torch

from models.adapters.adapter import Adapter
from models.adapters.batch import AdapterBatch
from models.adapters.gradient import GradientSpec, count_sketch, part_vectors, pulled_back, slopes_along
from models.lowrank.factors import Factors
from strategies.methods.hyperlora.config import GradientKind
from tests.builders import BLOCKS, CLASSES, RANK, SHAPES, WIDTH, make_adapter, products

START = make_adapter(0)
EXACT = GradientSpec("adapter")


def full_gradient(seed: int = 7) -> dict[str, torch.Tensor]:
    """A gradient G in product space, for every kind and the head."""
    generator = torch.Generator().manual_seed(seed)
    kinds = {kind: torch.randn(BLOCKS, m, n, generator=generator) for kind, (m, n) in SHAPES.items()}
    return kinds | {"head": torch.randn(CLASSES, WIDTH + 1, generator=generator)}


def factor_gradient(full: dict[str, torch.Tensor]) -> Adapter:
    """What a client computes: dL/dB = G A^T, dL/dA = B^T G."""
    low_rank = {k: Factors(B=full[k] @ f.A.mT, A=f.B.mT @ full[k]) for k, f in START.low_rank.items()}
    return Adapter(low_rank, full["head"])


def tangent(seed: int) -> Adapter:
    """A deviation in the tangent space at the start: delta_B A + B delta_A."""
    noise = make_adapter(seed)
    low_rank = {
        kind: Factors(
            B=torch.cat([noise.low_rank[kind].B, factors.B], dim=-1),
            A=torch.cat([factors.A, noise.low_rank[kind].A], dim=-2),
        )
        for kind, factors in START.low_rank.items()
    }
    return Adapter(low_rank, noise.head)


def derivatives(vectors: dict[str, torch.Tensor], start: Adapter, deviations: list[Adapter]) -> dict[str, torch.Tensor]:
    """One client's slopes (N,) by part."""
    gradient = {part: vector[None] for part, vector in vectors.items()}
    return {
        part: one[0]
        for part, one in slopes_along(pulled_back(gradient, AdapterBatch.stack([start]), EXACT), deviations).items()
    }


def test_the_kinds_are_those_of_the_configuration() -> None:
    from models.adapters.gradient import GRADIENT_KINDS as KINDS

    assert get_args(GradientKind) == KINDS


def test_derivatives_along_tangent_deviations_are_exact_up_to_damping() -> None:
    full = full_gradient()
    deviations = [tangent(seed) for seed in (1, 2, 3)]
    vectors = EXACT.compress(part_vectors(factor_gradient(full)))
    got = derivatives(vectors, START, deviations)
    for part, slopes in got.items():
        expected = torch.stack([(full[part] * products(one)[part]).sum() for one in deviations])
        torch.testing.assert_close(slopes, expected, rtol=0.08, atol=0.08 * float(expected.abs().max()))


def test_a_fresh_start_sees_what_lies_in_the_rows_of_its_factors() -> None:
    """With B = 0 only delta_B A can be seen, and nothing becomes infinite."""
    fresh = make_adapter(0, fresh=True)
    full = full_gradient()
    low_rank = {k: Factors(B=full[k] @ f.A.mT, A=f.B.mT @ full[k]) for k, f in fresh.low_rank.items()}
    vectors = part_vectors(Adapter(low_rank, full["head"]))
    inside = Adapter({k: Factors(B=torch.ones_like(f.B), A=f.A) for k, f in fresh.low_rank.items()}, fresh.head)
    for part, slopes in derivatives(vectors, fresh, [inside]).items():
        torch.testing.assert_close(slopes[0], (full[part] * products(inside)[part]).sum(), rtol=1e-3, atol=1e-3)


def test_sketches_keep_inner_products_within_their_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 5000, generator=generator)
    right = right + 0.5 * left
    size = 400
    errors = [
        float(count_sketch(left, size, str(part)) @ count_sketch(right, size, str(part)) - left @ right)
        for part in range(40)
    ]
    deviation = float(left.norm() * right.norm()) / size**0.5
    assert abs(sum(errors) / len(errors)) < 4 * deviation / len(errors) ** 0.5
    assert (sum(error**2 for error in errors) / len(errors)) ** 0.5 < 1.6 * deviation


def test_expanding_is_the_transpose_of_compressing() -> None:
    spec, other = GradientSpec("sketch", 50), AdapterBatch.stack([make_adapter(5)])
    told = spec.compress(part_vectors(AdapterBatch.stack([make_adapter(3)])))
    back, there = part_vectors(spec.expanded(told, other)), spec.compress(part_vectors(other))
    for part, vector in part_vectors(other).items():
        torch.testing.assert_close(back[part] @ vector.T, told[part] @ there[part].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["adapter", "sketch"])
def test_what_travels_has_the_declared_shapes(kind: str) -> None:
    spec = GradientSpec(kind, 16)
    told = spec.compress(part_vectors(START))
    assert {part: tuple(vector.shape) for part, vector in told.items()} == spec.shapes(START)
    assert set(told) == set(START.parts)


def test_no_gradient_is_nothing() -> None:
    assert GradientSpec().shapes(START) == {}


def test_vectors_have_all_numbers() -> None:
    lengths = {kind: BLOCKS * RANK * (m + n) for kind, (m, n) in SHAPES.items()} | {"head": CLASSES * (WIDTH + 1)}
    assert {part: vector.numel() for part, vector in part_vectors(START).items()} == lengths
