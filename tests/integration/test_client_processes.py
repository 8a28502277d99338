"""Flower's pool of client processes where some of them die: nobody is given to a dead one, and others come."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from flwr.simulation.ray_transport.ray_actor import BasicActorPool

from server_app import client_processes
from server_app.client_processes import METHODS, POOL, SIMULATION, mend_client_processes

Job = Callable[[], Any]


@ray.remote
class Worker:
    """Does what a message says, as Flower's actor of a client does."""

    def run(self, job: Job, message: str, client: str, context: int) -> tuple[str, Any, int]:
        return client, job(), context + 1

    def terminate(self) -> None:
        ray.actor.exit_actor()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_worker_niceness", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[BasicActorPool]:
    """Two processes, one CPU each, in a pool that is mended."""
    for name in METHODS:
        monkeypatch.setattr(BasicActorPool, name, getattr(BasicActorPool, name))  # undone after the test
    monkeypatch.setitem(sys.modules, SIMULATION, sys)
    assert mend_client_processes()
    made = BasicActorPool(Worker, {"num_cpus": 1}, {})  # type: ignore[arg-type]
    made.add_actors_to_pool(2)
    yield made
    for actor in made.pool:
        ray.kill(actor)


def asked(pool: BasicActorPool, job: Job) -> tuple[Any, Any]:
    """Return what Flower's backend gets for a message that has ``job`` done."""
    reference = pool.submit(lambda actor, *rest: actor.run.remote(*rest), (job, "message", "client", 1))  # type: ignore[arg-type]
    try:
        return pool.fetch_result_and_return_actor_to_pool(reference)
    except Exception:
        pool.add_actor_back_to_pool(reference)
        raise


def process_id() -> int:
    return os.getpid()


def die() -> None:
    os._exit(1)


def fail() -> None:
    raise ValueError("of the client")


def wait_for(pool: BasicActorPool, count: int) -> None:
    for _ in range(300):
        if len(pool.pool) == count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{len(pool.pool)} processes are idle after 30 s, {count} are expected")


def test_a_message_whose_process_is_gone_is_answered_by_another_and_the_pool_is_whole_again(
    pool: BasicActorPool,
) -> None:
    before = asked(pool, process_id)
    os.kill(before[0], signal.SIGKILL)
    after = asked(pool, process_id)
    assert (before[1], after[1]) == (2, 2)
    assert before[0] != after[0]
    wait_for(pool, 2)
    assert {asked(pool, process_id)[0] for _ in range(4)}.isdisjoint({before[0]})


def test_a_client_that_takes_its_process_down_fails_alone(pool: BasicActorPool) -> None:
    with pytest.raises(ray.exceptions.RayActorError):
        asked(pool, die)
    wait_for(pool, 2)
    assert asked(pool, process_id)[1] == 2


def test_an_error_of_a_client_is_its_own_and_its_process_goes_on(pool: BasicActorPool) -> None:
    (before,) = {asked(pool, process_id)[0]}
    with pytest.raises(ValueError, match="of the client"):
        asked(pool, fail)
    assert len(pool.pool) == 2
    assert asked(pool, process_id)[0] == before


def test_without_any_process_a_message_fails_after_a_time(
    pool: BasicActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_processes, "LONGEST_WAIT", 0.2)
    idle, pool.pool = pool.pool, []
    with pytest.raises(RuntimeError, match="the nodes that had them are lost"):
        asked(pool, process_id)
    pool.pool = idle


def test_only_the_pool_that_is_known_is_mended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, POOL, type("another", (), {"BasicActorPool": type("Pool", (), {})}))
    monkeypatch.delitem(sys.modules, SIMULATION, raising=False)
    assert not mend_client_processes()
    assert not caplog.text
    monkeypatch.setitem(sys.modules, SIMULATION, sys)
    assert not mend_client_processes()
    assert "another one" in caplog.text
