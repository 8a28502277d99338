from __future__ import annotations

import pytest
import torch

from models.lowrank.factors import Factors, align
from models.lowrank.mixtures import Mixtures, distinct_terms, truncated_mixtures
from models.lowrank.truncation import best_rank

CLIENTS, LAYERS, TERMS, RANK = 3, 2, 20, 4


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factors(m: int, n: int, rank: int, *batch: int, seed: int = 0) -> Factors:
    g = chance(seed)
    decay = 0.6 ** torch.arange(rank)
    return Factors(torch.randn(*batch, m, rank, generator=g) * decay, torch.randn(*batch, rank, n, generator=g))


def mixtures(m: int, n: int, terms: int = TERMS, individual: bool = True) -> Mixtures:
    weights = torch.rand(CLIENTS, terms, generator=chance(1)) * (torch.rand(CLIENTS, terms, generator=chance(2)) < 0.7)
    more = factors(m, n, 5, CLIENTS, LAYERS, seed=3) if individual else None
    return Mixtures(factors(m, n, terms, LAYERS), weights, more)


def dense(X: Mixtures, client: int) -> torch.Tensor:
    total = (X.shared.B * X.weights[client]) @ X.shared.A
    return total if X.individual is None else total + X.individual.B[client] @ X.individual.A[client]


@pytest.mark.parametrize("individual", [True, False])
def test_products_are_those_of_the_matrices(individual: bool) -> None:
    X, k = mixtures(11, 7, individual=individual), 6
    V, U = torch.randn(CLIENTS, LAYERS, 7, k), torch.randn(CLIENTS, LAYERS, 11, k)
    same = V[:1, :1].expand(CLIENTS, LAYERS, -1, -1)
    for client in range(CLIENTS):
        torch.testing.assert_close(X.times(V)[client], dense(X, client) @ V[client], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(X.times(same)[client], dense(X, client) @ same[client], rtol=1e-4, atol=1e-4)
        expected = dense(X, client).mT @ U[client]
        torch.testing.assert_close(X.transposed_times(U)[client], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(X.of_client(client).product(), dense(X, client), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(X.concatenated().product()[client], dense(X, client), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("m", "n", "terms"), [(70, 60, 80), (60, 70, 80), (70, 60, 20), (40, 70, 80)])
def test_the_truncation_of_many_is_that_of_each_in_the_same_gauge(m: int, n: int, terms: int) -> None:
    X, reference = mixtures(m, n, terms), factors(m, n, RANK, LAYERS, seed=9)
    got = truncated_mixtures(X, RANK, reference)
    for client in range(CLIENTS):
        expected = align(best_rank(X.of_client(client), RANK), reference)
        torch.testing.assert_close(got.B[client], expected.B, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.A[client], expected.A, rtol=1e-4, atol=1e-5)


def test_a_spectrum_that_does_not_fall_is_truncated_one_by_one() -> None:
    g = chance(4)
    shared = Factors(torch.randn(1, 300, 150, generator=g), torch.randn(1, 150, 300, generator=g))
    X = Mixtures(shared, torch.ones(2, 150))
    got = truncated_mixtures(X, RANK, factors(300, 300, RANK, 1))
    left = torch.linalg.matrix_norm(shared.product() - Factors(got.B, got.A).product()[0])
    values = torch.linalg.svdvals(shared.product().double())
    torch.testing.assert_close(left.double(), values[0, RANK:].norm()[None], rtol=1e-5, atol=0.0)


def test_terms_that_several_have_in_common_are_there_once() -> None:
    base, first, second = (factors(9, 5, 2, LAYERS, seed=seed) for seed in (1, 2, 3))
    terms = [
        Factors(torch.cat([one.B, -base.B], dim=-1), torch.cat([one.A, base.A], dim=-2)) for one in (first, second)
    ]
    stacked, membership = distinct_terms([*terms, factors(9, 5, 3, LAYERS, seed=4)])
    assert stacked.rank == 6 + 3
    for term, row in zip(terms, membership, strict=False):
        torch.testing.assert_close((stacked.B * row) @ stacked.A, term.product(), rtol=1e-4, atol=1e-5)


def test_a_term_that_is_there_twice_counts_twice() -> None:
    one = factors(9, 5, 2, LAYERS, seed=1)
    twice = Factors(torch.cat([one.B, one.B], dim=-1), torch.cat([one.A, one.A], dim=-2))
    stacked, membership = distinct_terms([twice])
    assert stacked.rank == 2
    torch.testing.assert_close((stacked.B * membership[0]) @ stacked.A, 2 * one.product(), rtol=1e-4, atol=1e-5)


def test_terms_that_look_alike_are_not_put_together() -> None:
    one = factors(9, 5, 2, LAYERS, seed=1)
    other = Factors(one.B.clone(), one.A.clone())
    other.B[-1, -1] += 1
    stacked, membership = distinct_terms([one, other])
    for term, row in zip((one, other), membership, strict=True):
        torch.testing.assert_close((stacked.B * row) @ stacked.A, term.product(), rtol=1e-4, atol=1e-5)
