"""Flower's pool of client processes where some of them die: nobody is given to a dead one, and others come."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from flwr.simulation.ray_transport.ray_actor import BasicActorPool

from server_app import client_processes
from server_app.client_processes import METHODS, POOL, SIMULATION, mended_client_processes

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


@pytest.fixture(scope="module")
def pool(cluster: None) -> Iterator[BasicActorPool]:
    """Two processes, one CPU each, in a pool that is mended; every test leaves it whole."""
    with pytest.MonkeyPatch.context() as patched:
        for name in METHODS:
            patched.setattr(BasicActorPool, name, getattr(BasicActorPool, name))  # undone after the tests
        patched.setitem(sys.modules, SIMULATION, sys)
        with mended_client_processes() as mended:
            assert mended
            made = BasicActorPool(Worker, {"num_cpus": 1}, {})  # type: ignore[arg-type]
            made.add_actors_to_pool(2)
            yield made


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


def die_once(mark: Path, answer: str | None) -> str:
    """Die the first time; then answer, or fail where there is no answer."""
    if not mark.exists():
        mark.touch()
        die()
    if answer is None:
        fail()
    return str(answer)


def fail() -> None:
    raise ValueError("of the client")


def wait_for(pool: BasicActorPool, count: int) -> None:
    for _ in range(300):
        client_processes._let_join(pool)
        if len(pool.pool) == count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{len(pool.pool)} processes are idle after 30 s, {count} are expected")


def test_no_message_is_given_to_processes_that_died_idle_and_the_pool_is_whole_again(pool: BasicActorPool) -> None:
    before = {ray.get(actor.run.remote(process_id, "", "", 0))[1] for actor in pool.pool}  # type: ignore[attr-defined]
    assert len(before) == 2
    for one in before:
        os.kill(one, signal.SIGKILL)
    after = asked(pool, process_id)
    assert after[0] not in before
    assert after[1] == 2
    wait_for(pool, 2)


def test_a_message_whose_process_dies_goes_to_another(pool: BasicActorPool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert asked(pool, partial(die_once, mark, "done")) == ("done", 2)
    wait_for(pool, 2)


def test_a_client_that_fails_on_its_second_process_costs_no_process(pool: BasicActorPool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of the client"):
        asked(pool, partial(die_once, tmp_path / "mark", None))
    wait_for(pool, 2)


def test_a_client_that_takes_its_process_down_fails_alone(pool: BasicActorPool) -> None:
    with pytest.raises(ray.exceptions.RayActorError):
        asked(pool, die)
    wait_for(pool, 2)
    assert asked(pool, process_id)[1] == 2


def test_an_error_of_a_client_is_its_own_and_its_process_goes_on(pool: BasicActorPool) -> None:
    before = asked(pool, process_id)[0]
    with pytest.raises(ValueError, match="of the client"):
        asked(pool, fail)
    assert len(pool.pool) == 2
    assert asked(pool, process_id)[0] == before


def test_without_any_process_a_message_fails_after_a_time(
    pool: BasicActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_processes, "LONGEST_WAIT", 0.2)
    idle, pool.pool = pool.pool, []
    with pytest.raises(RuntimeError, match="no process for a client is left"):
        asked(pool, process_id)
    pool.pool = idle


def test_after_the_run_nobody_waits_for_a_process(pool: BasicActorPool) -> None:
    idle, pool.pool = pool.pool, []
    client_processes.ended.set()
    with pytest.raises(RuntimeError, match="or the run has ended"):
        asked(pool, process_id)
    pool.pool = idle
    client_processes.ended.clear()


def test_only_the_pool_that_is_known_is_mended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, POOL, type("another", (), {"BasicActorPool": type("Pool", (), {})}))
    monkeypatch.delitem(sys.modules, SIMULATION, raising=False)
    with mended_client_processes() as mended:
        assert not mended
    assert not caplog.text
    monkeypatch.setitem(sys.modules, SIMULATION, sys)
    with mended_client_processes() as mended:
        assert not mended
    assert "another one" in caplog.text
