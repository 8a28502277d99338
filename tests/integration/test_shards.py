"""Sums in Ray actors: the result of one process, in any order, also where an actor is killed on the way."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from models.adapters import adapter_sum
from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import AdapterSum, sum_for
from models.lowrank.factors import Factors
from models.lowrank.shards import ShardedProductSum, ShardPool
from tests.builders import assert_same_products, make_adapter

ADAPTERS = [make_adapter(seed) for seed in range(6)]
WEIGHTS = [0.1, 0.3, 0.05, 0.25, 0.2, 0.1]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_worker_niceness", "0")  # else its processes wait for whatever else runs here
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def added(total: AdapterSum, order: range) -> AdapterSum:
    for place in order:
        total.add(ADAPTERS[place], WEIGHTS[place])
    return total


def in_one_process() -> Adapter:
    return added(AdapterSum(), range(6)).truncated(2)


def test_any_number_of_shards_and_any_order_give_the_result_of_one_process() -> None:
    for count, order in ((1, range(6)), (3, range(5, -1, -1))):
        sharded = added(AdapterSum(partial(ShardedProductSum, ShardPool(count))), order)
        assert_same_products(sharded.truncated(2), in_one_process(), 1e-6)


def test_an_actor_that_is_killed_is_given_its_terms_again(caplog: pytest.LogCaptureFixture) -> None:
    pool = ShardPool(2)
    total = added(AdapterSum(partial(ShardedProductSum, pool)), range(6))
    ray.kill(pool.owners[1].actor)
    assert_same_products(total.truncated(2), in_one_process(), 1e-6)
    assert "given its 12 terms" in caplog.text


def test_kept_and_cut_parts_are_those_of_one_process() -> None:
    sharded = added(AdapterSum(partial(ShardedProductSum, ShardPool(2))), range(6)).split(2, 1)
    alone = added(AdapterSum(), range(6)).split(2, 1)
    for mine, theirs in zip(sharded, alone, strict=True):
        assert_same_products(mine, theirs, 1e-6)


def test_small_rounds_stay_in_the_process_and_large_ones_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(filled(sum_for(ADAPTERS[0], 6))._products["mlp.fc1"], adapter_sum.ProductSum)
    monkeypatch.setattr(adapter_sum, "MANY_NUMBERS", 1000)
    assert isinstance(filled(sum_for(ADAPTERS[0], 6))._products["mlp.fc1"], adapter_sum.ProductSum)  # two CPUs
    monkeypatch.setattr(adapter_sum, "LEAST_CPUS", 2)
    assert isinstance(filled(sum_for(ADAPTERS[0], 6))._products["mlp.fc1"], ShardedProductSum)


def filled(total: AdapterSum) -> AdapterSum:
    total.add(ADAPTERS[0])
    return total


def test_shapes_that_differ_are_refused_before_anything_is_sent() -> None:
    total = filled(AdapterSum(partial(ShardedProductSum, ShardPool(2))))
    wrong = ADAPTERS[1].map(lambda one: type(one)(B=torch.zeros(4, 3, 2), A=one.A))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., m, n\)"):
        total.add(wrong)


def test_an_actor_is_sent_its_own_blocks_alone() -> None:
    sent: list[tuple[Any, ...]] = []
    pool = ShardPool(2)
    for owner in pool.owners:
        add = SimpleNamespace(remote=lambda *told: sent.append(told) or ray.put(None))
        owner.actor = SimpleNamespace(add=add)
    large = Factors(torch.randn(2, 4000, 2), torch.randn(2, 2, 3))
    ShardedProductSum(pool, "x").add(large)
    assert [len(pickle.dumps(B)) < 0.6 * large.B.nbytes for _, B, *_ in sent] == [True, True]
