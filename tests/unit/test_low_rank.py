"""Factors: each operation against the dense matrices it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from models.lowrank.factors import (
    ROW_NORM,
    Factors,
    align,
    concatenate,
    gram,
    inner,
    norm,
    truncate,
)
from models.lowrank.truncation import best_rank

SIZES = st.tuples(st.integers(3, 11), st.integers(3, 11), st.integers(1, 6))
quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Case:
    """Random factors of N clients; m, n and r are pairwise different."""

    m: int
    n: int
    r: int
    batch: tuple[int, ...]
    clients: list[Factors]
    weights: list[float]

    @property
    def max_rank(self) -> int:
        return min(self.m, self.n)

    def dense_sum(self) -> Tensor:
        return sum(w * f.product() for w, f in zip(self.weights, self.clients, strict=True))


def draw(m, n, r, batch=(), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(*batch, m, r, generator=generator, dtype=torch.float64)
    A = torch.randn(*batch, r, n, generator=generator, dtype=torch.float64)
    return Factors(B, A).to(dtype)


@st.composite
def cases(draw_from, dtype=torch.float64):
    m, n, r = draw_from(SIZES.filter(lambda sizes: len(set(sizes)) == 3))
    batch = draw_from(st.sampled_from([(), (1,), (2,), (2, 3)]))
    count, seed = draw_from(st.integers(1, 4)), draw_from(st.integers(0, 10_000))
    clients = [draw(m, n, r, batch, seed + 10_001 * i, dtype) for i in range(count)]
    weights = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return Case(m, n, r, batch, clients, (weights / weights.sum()).tolist())


def dense_truncation(dense, rank):
    U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    return (U[..., :rank] * S[..., None, :rank]) @ Vh[..., :rank, :], S


def orthogonal(r, batch=(), seed=1):
    return torch.linalg.qr(draw(r, r, r, batch, seed).B)[0]


def distance(x, y):
    return norm(concatenate([x, y], [1.0, -1.0]))


def frobenius(matrix):
    return torch.linalg.matrix_norm(matrix)


@quick
@given(cases())
def test_concatenate_is_the_dense_weighted_sum(case):
    both = concatenate(case.clients, case.weights)
    assert both.rank == case.r * len(case.clients)
    assert_close(both.product(), case.dense_sum())
    assert_close(concatenate(case.clients).product(), sum(f.product() for f in case.clients))


def test_concatenate_takes_different_ranks():
    clients = [draw(5, 7, 2, (3,), 1), draw(5, 7, 4, (3,), 2)]
    assert_close(concatenate(clients, [0.1, 0.9]).product(), 0.1 * clients[0].product() + 0.9 * clients[1].product())


@quick
@given(cases(), st.data())
def test_truncate_is_the_dense_truncated_svd(case, data):
    rank = data.draw(st.integers(1, case.max_rank))
    stacked = concatenate(case.clients, case.weights)
    dense = case.dense_sum()
    best, S = dense_truncation(dense, rank)
    cut = truncate(stacked, rank)

    assert cut.kept.rank == rank
    assert cut.kept.B.shape == (*case.batch, case.m, rank)
    assert cut.kept.A.shape == (*case.batch, rank, case.n)
    assert_close(cut.singular_values, S[..., : stacked.rank])
    scale = frobenius(dense).max().item()
    assert_close(frobenius(dense - cut.kept.product()), frobenius(dense - best), rtol=1e-5, atol=1e-12 * scale)
    assert_close(cut.kept.A @ cut.kept.A.mT, (torch.eye(rank, dtype=dense.dtype) / 3).expand(*case.batch, -1, -1))


@quick
@given(cases(), st.data())
def test_truncate_is_idempotent_and_bitwise_repeatable(case, data):
    rank = data.draw(st.integers(1, case.max_rank))
    stacked = concatenate(case.clients, case.weights)
    once, again = truncate(stacked, rank), truncate(stacked, rank)
    assert torch.equal(once.kept.B, again.kept.B)
    assert torch.equal(once.kept.A, again.kept.A)
    assert_close(truncate(once.kept, rank).kept.product(), once.kept.product())


def test_row_norm_is_that_of_a_fresh_lora_a():
    weight = torch.empty(2000, 48)
    bound = math.sqrt(6 / ((1 + 5) * 48))
    weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
    assert weight.norm(dim=1).square().mean().sqrt().item() == pytest.approx(ROW_NORM, rel=0.01)


def test_truncate_makes_the_largest_entry_of_each_left_vector_positive():
    B = truncate(draw(9, 6, 4, (5,)), 4).kept.B
    assert (B.gather(-2, B.abs().argmax(-2, keepdim=True)) > 0).all()


@pytest.mark.parametrize("rank", [3, 5])
def test_truncate_completes_a_lower_rank(rank):
    factors = draw(7, 5, 2, (4,))
    cut = truncate(factors, rank)
    assert cut.kept.rank == rank
    assert (cut.kept.B[..., 2:] == 0).all()
    assert_close(cut.kept.product(), factors.product())
    assert_close(cut.kept.A.norm(dim=-1), torch.full((4, rank), ROW_NORM, dtype=torch.float64))


def test_factors_of_rank_zero_are_nothing():
    factors = draw(7, 5, 2, (4,))
    empty = Factors(factors.B[..., :0], factors.A[..., :0, :])
    assert_close(concatenate([empty, factors, empty], [2.0, 1.0, 3.0]).product(), factors.product())
    assert (norm(empty) == 0).all()
    assert gram([empty, factors]).isfinite().all()
    assert (truncate(concatenate([empty, empty]), 3).kept.product() == 0).all()


@quick
@given(cases(), st.data())
def test_order_of_clients_does_not_matter(case, data):
    rank = data.draw(st.integers(1, case.max_rank))
    order = data.draw(st.permutations(range(len(case.clients))))
    straight = concatenate(case.clients, case.weights)
    turned = concatenate([case.clients[i] for i in order], [case.weights[i] for i in order])
    assert_close(turned.product(), straight.product())
    # The error, not the product: the best approximation is not unique where singular values are equal.
    errors = [frobenius(stacked.product() - truncate(stacked, rank).kept.product()) for stacked in (straight, turned)]
    assert_close(errors[0], errors[1], rtol=1e-6, atol=1e-9)


@quick
@given(cases())
def test_a_change_of_gauge_moves_nothing(case):
    R = orthogonal(case.r, case.batch) @ torch.diag(torch.linspace(0.5, 2, case.r, dtype=torch.float64))
    turned = [Factors(f.B @ torch.linalg.inv(R), R @ f.A) for f in case.clients]
    rank = min(case.r * len(case.clients), case.max_rank)
    before, after = (best_rank(concatenate(clients, case.weights), rank) for clients in (case.clients, turned))
    assert_close(after.product(), before.product())
    assert_close(gram(turned), gram(case.clients))


@quick
@given(cases())
def test_equal_clients_give_back_their_own_product(case):
    client, rank = case.clients[0], min(case.r, case.max_rank)
    average = best_rank(concatenate([client] * len(case.clients), case.weights), rank)
    assert average.rank == rank
    assert_close(average.product(), client.product())


@quick
@given(cases())
def test_inner_products_and_norms_are_the_dense_ones(case):
    dense = [f.product() for f in case.clients]
    expected = torch.stack([torch.stack([(x * y).sum((-2, -1)) for y in dense]) for x in dense])
    assert_close(gram(case.clients), expected)
    first, last = case.clients[0], case.clients[-1]
    assert_close(inner(first, last), expected[0, -1])
    assert_close(norm(first), frobenius(dense[0]))


def test_gram_takes_different_ranks():
    x, y = draw(5, 7, 2, (3,), 1), draw(5, 7, 4, (3,), 2)
    assert_close(gram([x, y])[0, 1], (x.product() * y.product()).sum((-2, -1)))


@quick
@given(cases())
def test_align_keeps_the_product_and_never_moves_away(case):
    factors, reference = case.clients[0], case.clients[-1]
    turned = align(factors, reference)
    assert_close(turned.product(), factors.product())
    before, after = frobenius(factors.A - reference.A), frobenius(turned.A - reference.A)
    assert (after <= before + 1e-9).all()
    other = orthogonal(case.r, case.batch) @ factors.A
    assert (after <= frobenius(other - reference.A) + 1e-9).all()


def test_align_recovers_a_rotated_a():
    reference, R = draw(9, 7, 4, (3,)), orthogonal(4, (3,))
    turned = align(Factors(reference.B @ R.mT, R @ reference.A), reference)
    assert_close(turned.A, reference.A)
    assert_close(turned.B, reference.B)


@quick
@given(cases())
def test_the_bias_of_averaging_factors_is_their_covariance(case):
    """FedIT: sum p_k B_k A_k - B A = sum p_k (B_k - B)(A_k - A)."""
    p, clients = case.weights, case.clients
    B = sum(w * f.B for w, f in zip(p, clients, strict=True))
    A = sum(w * f.A for w, f in zip(p, clients, strict=True))
    bias = concatenate([*clients, Factors(B, A)], [*p, -1.0])
    covariance = concatenate([Factors(f.B - B, f.A - A) for f in clients], p)
    assert_close(bias.product(), covariance.product())


def test_zero_b_stays_zero_and_finite():
    fresh = [Factors(torch.zeros(2, 6, 3), draw(6, 8, 3, (2,), i, torch.float32).A) for i in range(3)]
    average = best_rank(concatenate(fresh, [0.2, 0.3, 0.5]), 3)
    assert (average.B == 0).all()
    assert_close(average.A.norm(dim=-1), torch.full((2, 3), ROW_NORM))
    aligned = align(average, fresh[0])
    assert aligned.A.isfinite().all()
    assert (aligned.B == 0).all()
    assert (gram(fresh) == 0).all()
    assert (distance(fresh[0], fresh[1]) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_as_float32(dtype):
    clients = [draw(6, 8, 3, (2,), i, dtype) for i in range(2)]
    cut = truncate(concatenate(clients, [0.5, 0.5]), 3)
    tensors = [cut.kept.A, cut.kept.B, cut.singular_values, gram(clients), norm(clients[0])]
    assert {t.dtype for t in [*tensors, align(clients[0], clients[1]).A]} == {torch.float32}
    expected = sum(f.to(torch.float64).product() for f in clients) / 2
    assert_close(truncate(concatenate(clients, [0.5, 0.5]), 6).kept.product().double(), expected, rtol=1e-5, atol=1e-5)


def test_float32_errors_stay_at_float32():
    factors = draw(96, 64, 16, (3,), 0, torch.float32)
    cut = truncate(concatenate([factors, factors], [0.5, 0.5]), 16).kept
    assert cut.B.dtype == torch.float32
    assert (distance(cut, factors) <= 1e-6 * norm(factors)).all()


def test_inner_gram_and_concatenate_are_differentiable():
    shapes = [(2, 4, 3), (2, 3, 5), (2, 4, 3), (2, 3, 5)]
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]

    def both(B1, A1, B2, A2):
        return Factors(B1, A1), Factors(B2, A2)

    assert torch.autograd.gradcheck(lambda *t: inner(*both(*t)), leaves)
    assert torch.autograd.gradcheck(lambda *t: gram(both(*t)), leaves)
    assert torch.autograd.gradcheck(lambda *t: concatenate(both(*t), [0.3, 0.7]).product(), leaves)


def test_errors_say_what_was_expected_and_what_came():
    with pytest.raises(ValueError, match=r"got B \(4, 3\) and A \(2, 5\)"):
        Factors(torch.zeros(4, 3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"equal '\.\.\.'"):
        Factors(torch.zeros(2, 4, 3), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="expected B"):
        Factors(torch.zeros(3), torch.zeros(3, 5))
    factors = draw(4, 5, 3)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=rf"1 to min\(m, n\) = 4, got {rank}"):
            truncate(factors, rank)
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])
    with pytest.raises(ValueError, match=r"expected 1 weights.*got 2"):
        concatenate([factors], [1.0, 2.0])
    for operation in (inner, lambda x, y: gram([x, y]), lambda x, y: concatenate([x, y])):
        with pytest.raises(ValueError, match=r"expected .* = \(4, 5\).*got \(5, 4\)"):
            operation(factors, draw(5, 4, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 5\), got \(3, 5\)"):
        align(factors, draw(4, 5, 2))
