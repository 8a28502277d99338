"""Truncation: every way against the dense SVD, and the bound against the error it bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.lowrank.block_lanczos import leading_right_vectors
from models.lowrank.factor_stack import FactorStack
from models.lowrank.factors import ROW_NORM, Factors, concatenate, truncate
from models.lowrank.truncation import TOLERANCE, best_rank, estimate_costs

WAYS = ("qr", "gram", "lanczos", "dense")
quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def draw(m, n, r, seed, batch=(), common=0.0):
    """Factors of which a share ``common`` is the same for every seed."""
    own, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    B, A = ((1 - common) * torch.randn(*batch, *size, generator=own) for size in ((m, r), (r, n)))
    B += common * torch.randn(*batch, m, r, generator=shared)
    A += common * torch.randn(*batch, r, n, generator=shared)
    return Factors(B, A)


def excess_error(X, Y, rank):
    """(||X - Y|| - ||X - X_r||) / ||X|| per layer, in float64."""
    dense = X.to(torch.float64).product()
    best = torch.linalg.svdvals(dense)[..., rank:].norm(dim=-1)
    error = torch.linalg.matrix_norm(dense - Y.to(torch.float64).product())
    return (error - best) / torch.linalg.matrix_norm(dense).clamp(min=1e-300)


def assert_best(X, Y, rank, tolerance=TOLERANCE):
    assert Y.B.shape[-1] == rank
    assert float(excess_error(X, Y, rank).max()) <= tolerance


@st.composite
def sums(pick):
    m, n, r = pick(
        st.tuples(st.integers(70, 130), st.integers(70, 130), st.integers(1, 9)).filter(lambda s: len({*s}) == 3)
    )
    batch, common = pick(st.sampled_from([(), (1,), (3,), (2, 2)])), pick(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    count, seed = pick(st.integers(1, 20)), pick(st.integers(1, 10_000))
    clients = [draw(m, n, r, seed + 10_001 * i, batch, common) for i in range(count)]
    weights = torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.1
    return clients, (weights / weights.sum()).tolist(), r


@quick
@given(sums(), st.sampled_from([None, *WAYS]))
def test_every_way_is_the_best_rank(case, way):
    """Spectra are flat (nothing common), falling, or of rank r exactly (equal clients)."""
    clients, weights, r = case
    X = concatenate(clients, weights)
    Y = best_rank(X, r, method=way)
    assert_best(X, Y, r)
    torch.testing.assert_close(Y.A @ Y.A.mT, (torch.eye(r) / 3).expand(*X.A.shape[:-2], -1, -1), rtol=1e-5, atol=1e-6)
    assert (Y.B.gather(-2, Y.B.abs().argmax(-2, keepdim=True)) >= 0).all()


@quick
@given(sums(), st.integers(0, 9))
def test_the_first_components_are_the_best_of_their_own_rank(case, more):
    clients, weights, r = case
    X = concatenate(clients, weights)
    Y = best_rank(X, r, r + more)
    assert_best(X, Y, r + more)
    assert_best(X, Factors(Y.B[..., :r], Y.A[..., :r, :]), r)


@quick
@given(sums(), st.integers(1, 4))
def test_the_bound_of_lanczos_bounds_the_error(case, steps):
    """Also where it has not converged: that is what decides whether the result is taken."""
    clients, weights, r = case
    X = concatenate(clients, weights)
    found = leading_right_vectors(FactorStack.of(X), [r], tolerance=0.0, most_steps=steps)
    error = excess_error(X, Factors(found.XV, found.V.mT), r)
    assert (error <= found.excess + 1e-7).all()


@pytest.mark.parametrize("way", WAYS)
def test_order_of_arrival_moves_the_product_by_rounding_only(way):
    clients = [draw(150, 90, 3, seed, (2,), 0.6) for seed in range(1, 31)]
    there, back = (best_rank(concatenate(order, [1 / 30] * 30), 3) for order in (clients, clients[::-1]))
    scale = torch.linalg.matrix_norm(there.product())
    assert (torch.linalg.matrix_norm(there.product() - back.product()) <= 1e-6 * scale).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e12])
def test_scale_and_an_uneven_split_of_it_do_not_matter(way, scale):
    X = concatenate([draw(120, 80, 4, seed, (2,), 0.5) for seed in range(1, 16)])
    scaled = Factors(X.B * scale, X.A * 1e3)
    Y = best_rank(scaled, 4, method=way)
    assert_best(X, Factors(Y.B.double() / scale, Y.A.double() / 1e3), 4)


@pytest.mark.parametrize("way", WAYS)
def test_zero_factors_give_zero_with_rows_of_the_usual_length(way):
    Y = best_rank(Factors(torch.zeros(2, 120, 60), torch.randn(2, 60, 80)), 4, method=way)
    assert (Y.B == 0).all()
    torch.testing.assert_close(Y.A.norm(dim=-1), torch.full((2, 4), ROW_NORM))


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_of_lower_rank_than_asked_for_is_exact(way):
    X = concatenate([draw(120, 80, 2, 1)] * 40)
    assert_best(X, best_rank(X, 5, method=way), 5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_what_cancels_leaves_what_does_not(way, size):
    large, small = draw(120, 80, 30, 1), draw(120, 80, 30, 2).scaled(size)
    X = concatenate([large, small, large.scaled(-1.0)])
    assert_best(small, best_rank(X, 4, method=way), 4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_in_and_float32_out(way, dtype):
    X = concatenate([draw(120, 80, 3, seed, (2,), 0.7) for seed in range(1, 21)]).to(dtype)
    Y = best_rank(X, 3, method=way)
    assert Y.B.dtype == Y.A.dtype == torch.float32
    assert_best(X, Y, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(way, bad):
    X = concatenate([draw(120, 80, 3, seed) for seed in range(20)])
    X.B[7, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        best_rank(X, 3, method=way)


def test_wide_and_tall_sums_give_the_same_product():
    X = concatenate([draw(200, 90, 4, seed, (2,), 0.6) for seed in range(20)])
    turned = best_rank(Factors(X.A.mT, X.B.mT), 4)
    torch.testing.assert_close(turned.product().mT, best_rank(X, 4).product(), rtol=1e-4, atol=1e-4)


def test_the_same_call_gives_the_same_bits_as_the_exact_truncation_gives_to_rounding():
    X = concatenate([draw(200, 90, 4, seed, (2,), 0.8) for seed in range(40)])
    once, again, exact = best_rank(X, 4), best_rank(X, 4), truncate(X, 4).kept
    assert torch.equal(once.B, again.B)
    assert torch.equal(once.A, again.A)
    torch.testing.assert_close(once.B, exact.B, rtol=1e-3, atol=1e-3)


def test_the_cost_model_takes_the_core_for_few_clients_and_products_for_many():
    def cheapest(clients):
        X = FactorStack.of(Factors(torch.empty(3072, 8 * clients), torch.empty(8 * clients, 768)))
        costs = estimate_costs(X, 8)
        return min(costs, key=lambda way: costs[way])

    assert [cheapest(clients) for clients in (2, 10, 100, 1000)] == ["qr", "gram", "lanczos", "lanczos"]


def test_a_rank_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"1 to min\(m, n\) = 80, got 81"):
        best_rank(draw(120, 80, 3, 1), 4, 81)
