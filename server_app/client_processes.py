"""Flower's pool of client processes, mended for a Ray cluster that loses some of them.

Flower puts a process that died back among the idle ones, where it answers every later message with an error at once and
so is taken again before all others: one lost node costs nearly all contributions to the end of the run. Here only a
process that answers is given a message, the message of one that dies goes to another once, and a new process joins the
pool as soon as the cluster has room for it, be it on a node that comes later.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

SIMULATION, POOL = "flwr.simulation.run_simulation", "flwr.simulation.ray_transport.ray_actor"
"""Modules of Flower: the one that a process that simulates has imported, and the one with its pool."""
METHODS = ("submit", "add_actor_back_to_pool", "fetch_result_and_return_actor_to_pool")
LONGEST_WAIT, PAUSE = 600.0, 0.1
"""Seconds that a message waits where no process works, and between two looks for an idle one."""
MOST_NEW = 1000
"""Processes that a run may begin in place of others."""
ended = threading.Event()
log = logging.getLogger(__name__)


@contextmanager
def mended_client_processes() -> Iterator[bool]:
    """Have Flower's pool in this process, if it simulates, deal with processes that die, while the block runs.

    A pool of another Flower, without the methods that are replaced, is left as it is; what is given tells whether
    it was mended.
    """
    ended.clear()
    try:
        yield _mend()
    finally:
        ended.set()


def _mend() -> bool:
    if SIMULATION not in sys.modules:
        return False
    pool: Any = getattr(import_module(POOL), "BasicActorPool", None)
    if any(not hasattr(pool, name) for name in METHODS):
        log.warning("Flower's pool of client processes is another one: what a lost node had fails to the run's end")
        return False
    pool.submit, pool.add_actor_back_to_pool = _submit, _give_back
    pool.fetch_result_and_return_actor_to_pool = _fetch
    return True


def _dead() -> tuple[type[Exception], ...]:
    """Return the errors that say that a process, or what it left, is gone; an error of a client is none of them."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
    )


def _submit(pool: Any, run: Any, job: tuple[Any, ...]) -> Any:
    """Have an idle process do ``job`` and return the reference to its result."""
    actor = _living(pool)
    try:
        reference = run(actor, *job)
    except BaseException:
        pool.pool.append(actor)
        raise
    pool._future_to_actor[reference] = actor
    pool.__dict__.setdefault("jobs", {})[reference] = run, job
    return reference


def _living(pool: Any) -> Any:
    """Take a process that answers out of the pool; those that do not are replaced."""
    import ray

    while True:
        actor = _idle(pool)
        try:
            ray.get(actor.__ray_ready__.remote())
        except _dead():
            _replace(pool, actor)
        else:
            return actor


def _idle(pool: Any) -> Any:
    """Take a process out of the pool; where there is none, wait for one that works or for one that joins.

    Raises:
        RuntimeError: the run has ended, or no process has worked for a long time.
    """
    end = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < end and not ended.is_set():
        _let_join(pool)
        try:
            return pool.pool.pop()
        except IndexError:
            time.sleep(PAUSE)
        if pool._future_to_actor:
            end = time.monotonic() + LONGEST_WAIT
    raise RuntimeError("no process for a client is left: the nodes that had them are lost, or the run has ended")


def _give_back(pool: Any, reference: Any) -> None:
    """Put the process that worked on ``reference`` back into the pool, unless it was replaced."""
    pool.jobs.pop(reference, None)
    actor = pool._future_to_actor.pop(reference, None)
    if actor is not None:
        pool.pool.append(actor)


def _fetch(pool: Any, reference: Any) -> tuple[Any, Any]:
    """Return a client's reply and context; where its process dies, those of another one that is given the same."""
    job = pool.jobs[reference]
    try:
        return _result(pool, reference)
    except _dead():
        log.warning("a process that clients train in has died with a message; it goes to another one")
        return _result(pool, _submit(pool, *job))


def _result(pool: Any, reference: Any) -> tuple[Any, Any]:
    """Return what ``reference`` is to; its process goes back into the pool, or another one comes in its place."""
    import ray

    try:
        _, reply, context = ray.get(reference)
    except _dead():
        pool.jobs.pop(reference, None)
        _replace(pool, pool._future_to_actor.pop(reference))
        raise
    except BaseException:
        _give_back(pool, reference)
        raise
    _give_back(pool, reference)
    return reply, context


def _replace(pool: Any, actor: Any) -> None:
    """Drop a process that died, and begin another one that joins the pool once the cluster has started it."""
    import ray

    with suppress(ray.exceptions.RayError, ValueError):
        ray.kill(actor)  # it may only have been out of reach
    _begin(pool)


def _begin(pool: Any) -> None:
    pool.begun = getattr(pool, "begun", 0) + 1
    if pool.begun <= MOST_NEW:
        new = pool.create_actor_fn()
        pool.__dict__.setdefault("joining", {})[new.__ray_ready__.remote()] = new


def _let_join(pool: Any) -> None:
    """Put processes that were begun in place of others into the pool once they answer."""
    import ray

    joining = pool.__dict__.get("joining", {})
    if not joining:
        return
    for ready in ray.wait(list(joining), num_returns=len(joining), timeout=0)[0]:
        new = joining.pop(ready, None)
        if new is None:  # another thread was first
            continue
        try:
            ray.get(ready)
        except ray.exceptions.RayError:
            _begin(pool)
        else:
            pool.pool.append(new)
