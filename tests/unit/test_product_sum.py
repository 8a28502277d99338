from __future__ import annotations

import pytest
import torch

from models.lowrank.factors import Factors, concatenate
from models.lowrank.product_sum import ProductSum
from models.lowrank.truncation import best_rank
from tests.unit.test_truncation import assert_best, draw

M, N, R, BATCH = 150, 90, 3, (2,)
CLIENTS = [draw(M, N, R + index % 2, index, BATCH, 0.0) for index in range(30)]
WEIGHTS = [(index + 1) / 465 for index in range(30)]


def folded(order=range(30), **limits):
    total = ProductSum(**limits)
    for index in order:
        total.add(CLIENTS[index], WEIGHTS[index])
    return total


@pytest.mark.parametrize("limits", [{}, {"ram_limit": 0, "chunk_bytes": 20_000}, {"ram_limit": 0, "chunk_bytes": 1}])
def test_folding_in_one_by_one_is_the_sum_in_ram_and_on_disk(limits):
    total, together = folded(**limits), concatenate(CLIENTS, WEIGHTS)
    assert total.rank == together.rank
    torch.testing.assert_close(total.stack().dense().float(), together.product(), rtol=1e-5, atol=1e-5)
    assert_best(together, total.truncated(R), R)


def test_the_ram_that_is_kept_stays_under_its_limit_however_many_come():
    total = ProductSum(ram_limit=50_000, chunk_bytes=20_000)
    for _ in range(10):
        for client in CLIENTS:
            total.add(client)
    total.stack()
    assert 0 < total.ram_bytes <= 50_000


def test_the_order_of_arrival_moves_the_result_by_rounding_only():
    there, back = folded().truncated(R).product(), folded(range(29, -1, -1)).truncated(R).product()
    assert float((there - back).norm()) <= 1e-6 * float(there.norm())


def test_more_may_be_added_after_a_truncation():
    total = folded(range(10))
    total.truncated(R)
    for index in range(10, 30):
        total.add(CLIENTS[index], WEIGHTS[index])
    assert_best(concatenate(CLIENTS, WEIGHTS), total.truncated(R), R)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_taken(dtype):
    total, clients = ProductSum(ram_limit=0, chunk_bytes=20_000), [one.to(dtype) for one in CLIENTS]
    for client in clients:
        total.add(client)
    result = total.truncated(R)
    assert result.B.dtype == torch.promote_types(dtype, torch.float32)
    assert_best(concatenate(clients), result, R)


def test_nothing_and_something_else_are_named():
    with pytest.raises(ValueError, match="at least one"):
        ProductSum().truncated(R)
    total = folded(range(1))
    with pytest.raises(ValueError, match=r"expected .* = \(2, 150, 90\).* got \(2, 90, 150\)"):
        total.add(Factors(CLIENTS[0].A.mT, CLIENTS[0].B.mT))


def test_one_client_comes_back_as_its_own_product():
    total = ProductSum()
    total.add(CLIENTS[0], 0.5)
    torch.testing.assert_close(total.truncated(R).product(), best_rank(CLIENTS[0], R).product() / 2)
