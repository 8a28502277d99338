"""Sums in Ray actors: the result of one process, in any order, also where an actor is killed on the way."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from models.adapters import adapter_sum
from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import AdapterSum, sum_for, taker_for
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


@pytest.fixture(scope="module")
def pair() -> ShardPool:
    """Two actors that nobody kills."""
    return ShardPool(2)


def added(total: AdapterSum, order: range) -> AdapterSum:
    for place in order:
        total.add(ADAPTERS[place], WEIGHTS[place])
    return total


def in_one_process() -> Adapter:
    return added(AdapterSum(), range(6)).truncated(2)


def sharded_in(pool: ShardPool) -> Callable[[str], ShardedProductSum]:
    return lambda kind: ShardedProductSum(pool)


def test_any_number_of_shards_and_any_order_give_the_result_of_one_process() -> None:
    for count, order in ((1, range(6)), (3, range(5, -1, -1))):
        sharded = added(AdapterSum(sharded_in(ShardPool(count))), order)
        assert_same_products(sharded.truncated(2), in_one_process(), 1e-6)


def test_an_actor_that_is_killed_is_given_its_terms_again(caplog: pytest.LogCaptureFixture) -> None:
    pool = ShardPool(2)
    total = added(AdapterSum(sharded_in(pool)), range(6))
    ray.kill(pool.owners[1].actor)
    assert_same_products(total.truncated(2), in_one_process(), 1e-6)
    assert "given its 12 terms" in caplog.text


def test_kept_and_cut_parts_are_those_of_one_process(pair: ShardPool) -> None:
    sharded = added(AdapterSum(sharded_in(pair)), range(6)).split(2, 1)
    alone = added(AdapterSum(), range(6)).split(2, 1)
    for mine, theirs in zip(sharded, alone, strict=True):
        assert_same_products(mine, theirs, 1e-6)


def test_small_rounds_stay_in_the_process_and_large_ones_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(filled(sum_for(ADAPTERS[0], 6))._products["mlp.fc1"], adapter_sum.ProductSum)
    monkeypatch.setattr(adapter_sum, "MANY_NUMBERS", 1000)
    monkeypatch.setattr(adapter_sum, "_pools", {})
    assert isinstance(filled(sum_for(ADAPTERS[0], 6))._products["mlp.fc1"], adapter_sum.ProductSum)  # two CPUs
    monkeypatch.setattr(adapter_sum, "LEAST_CPUS", 2)
    assert isinstance(filled(sum_for(ADAPTERS[0], 6))._products["mlp.fc1"], ShardedProductSum)


def filled(total: AdapterSum) -> AdapterSum:
    total.add(ADAPTERS[0])
    return total


def test_shapes_that_differ_are_refused_before_anything_is_sent(pair: ShardPool) -> None:
    total = filled(AdapterSum(sharded_in(pair)))
    wrong = ADAPTERS[1].map(lambda one: type(one)(B=torch.zeros(4, 3, 2), A=one.A))
    with pytest.raises(ValueError, match=r"expected \(\.\.\., m, n\)"):
        total.add(wrong)


def test_an_actor_is_sent_its_own_blocks_alone() -> None:
    pool, sent = ShardPool(2), list[tuple[Any, ...]]()
    record_parking(pool, sent)
    large = Factors(torch.randn(2, 4000, 2), torch.randn(2, 2, 3))
    ShardedProductSum(pool).add(large)
    assert [len(pickle.dumps(B)) < 0.6 * large.B.nbytes for _, B, _ in sent] == [True, True]


def record_parking(pool: ShardPool, sent: list[tuple[Any, ...]]) -> None:
    """Have ``sent`` keep what every actor is sent to park, and nothing else happen."""
    keep = SimpleNamespace(remote=lambda *told: sent.append(told) or ray.put(None))
    other = SimpleNamespace(remote=lambda *told: ray.put(None))
    for owner in pool.owners:
        owner.actor = SimpleNamespace(park=keep, add=other, drop=other)


def test_what_is_parked_is_not_sent_again_and_counts_only_where_it_is_added() -> None:
    pool, sent = ShardPool(2), list[tuple[Any, ...]]()
    for factors in ADAPTERS[0].low_rank.values():
        pool.park(factors)
    actors = [owner.actor for owner in pool.owners]
    record_parking(pool, sent)
    for owner, actor in zip(pool.owners, actors, strict=True):
        owner.actor.add, owner.actor.truncated = actor.add, actor.truncated
    total = AdapterSum(sharded_in(pool))
    total.add(ADAPTERS[0], 0.5)
    assert sent == []
    assert_same_products(total.truncated(2), scaled(ADAPTERS[0], 0.5), 1e-6)
    total.add(ADAPTERS[1], 1.0)
    assert len(sent) == 2 * len(ADAPTERS[1].low_rank)


def scaled(adapter: Adapter, weight: float) -> Adapter:
    total = AdapterSum()
    total.add(adapter, weight)
    return total.truncated(2)


def test_a_round_is_dealt_out_as_it_arrives_and_only_what_counts_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_sum, "MANY_NUMBERS", 1000)
    monkeypatch.setattr(adapter_sum, "LEAST_CPUS", 2)
    monkeypatch.setattr(adapter_sum, "_pools", {})
    monkeypatch.setattr("models.lowrank.shards.MOST_EARLY", 1000)
    pools = []
    for _ in range(2):
        take = taker_for(ADAPTERS[0], 6)
        for adapter in [*ADAPTERS, make_adapter(17)]:  # the last one is screened out
            take(adapter)
        total = added(sum_for(ADAPTERS[0], 6), range(6))
        pools.append(total._products["mlp.fc1"]._pool)  # type: ignore[attr-defined]
        assert_same_products(total.truncated(2), in_one_process(), 1e-6)
        assert [len(owner.parked) for owner in pools[-1].owners] == [2, 2]  # of the last one, both kinds
    assert pools[0] is pools[1]
    del total
    assert [owner.terms for owner in pools[0].owners] == [[], []]
    pools[0].drop_parked()
    assert [owner.parked for owner in pools[0].owners] == [{}, {}]


def test_an_actor_that_is_killed_with_what_was_parked_is_given_it_again() -> None:
    pool = ShardPool(2)
    for factors in ADAPTERS[0].low_rank.values():
        pool.park(factors)
    ray.kill(pool.owners[0].actor)
    total = added(AdapterSum(sharded_in(pool)), range(6))
    assert_same_products(total.truncated(2), in_one_process(), 1e-6)


def test_an_actor_that_could_not_take_something_in_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    pool = ShardPool(1)
    total = added(AdapterSum(sharded_in(pool)), range(6))
    pool.owners[0].sent.append(pool.owners[0].actor.add.remote("sum", -1, 1.0))  # of nothing that is parked
    assert_same_products(total.truncated(2), in_one_process(), 1e-6)
    assert "given its 12 terms" in caplog.text


def test_what_cannot_be_sent_early_is_sent_with_its_weight(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("the object store is full")

    monkeypatch.setattr(adapter_sum, "MANY_NUMBERS", 1000)
    monkeypatch.setattr(adapter_sum, "LEAST_CPUS", 2)
    monkeypatch.setattr(adapter_sum, "_pools", {})
    take = taker_for(ADAPTERS[0], 6)
    monkeypatch.setattr(ShardPool, "park", full)
    for adapter in ADAPTERS:
        take(adapter)
    assert caplog.text.count("not dealt out as they arrive") == 1
    assert_same_products(added(sum_for(ADAPTERS[0], 6), range(6)).truncated(2), in_one_process(), 1e-6)
