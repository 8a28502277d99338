"""Flower's pool of client processes, mended for a Ray cluster that loses some of them.

Flower puts a process that died back among the idle ones, where it answers every later message with an error at once and
so is taken again before all others: one lost node costs nearly all contributions to the end of the run. Here such a
process is never taken again, its message goes to another one once, and a new process joins the pool as soon as the
cluster has room for it, be it on a node that comes later.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from importlib import import_module
from typing import Any

SIMULATION, POOL = "flwr.simulation.run_simulation", "flwr.simulation.ray_transport.ray_actor"
"""Modules of Flower: the one that a process that simulates has imported, and the one with its pool."""
METHODS = ("submit", "add_actor_back_to_pool", "fetch_result_and_return_actor_to_pool")
LONGEST_WAIT, PAUSE = 600.0, 0.1
"""Seconds that a message waits for an idle process before it fails, and between two looks."""
log = logging.getLogger(__name__)


def mend_client_processes() -> bool:
    """Have Flower's pool in this process, if it simulates, deal with processes that die; tell whether it does.

    A pool of another Flower, without the methods that are replaced, is left as it is.
    """
    if SIMULATION not in sys.modules:
        return False
    pool: Any = getattr(import_module(POOL), "BasicActorPool", None)
    if any(not hasattr(pool, name) for name in METHODS):
        log.warning("Flower's pool of client processes is another one: what a lost node had fails to the run's end")
        return False
    pool.submit, pool.add_actor_back_to_pool = _submit, _give_back
    pool.fetch_result_and_return_actor_to_pool = _fetch
    return True


def _submit(pool: Any, run: Any, job: tuple[Any, ...]) -> Any:
    """Have an idle process do ``job`` and return the reference to its result."""
    actor = _idle(pool)
    reference = run(actor, *job)
    pool._future_to_actor[reference] = actor
    pool.__dict__.setdefault("jobs", {})[reference] = run, job
    return reference


def _idle(pool: Any) -> Any:
    """Take a process out of the pool, which may be empty while others come in place of those that died."""
    end = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < end:
        try:
            return pool.pool.pop()
        except IndexError:
            time.sleep(PAUSE)
    raise RuntimeError(f"no process for a client was free for {LONGEST_WAIT:.0f} s; the nodes that had them are lost")


def _give_back(pool: Any, reference: Any) -> None:
    """Put the process that worked on ``reference`` back into the pool, unless it has died."""
    pool.jobs.pop(reference, None)
    actor = pool._future_to_actor.pop(reference, None)
    if actor is not None:
        pool.pool.append(actor)


def _fetch(pool: Any, reference: Any) -> tuple[Any, Any]:
    """Return a client's reply and context; where its process dies, those of another one that is given the same."""
    import ray

    run, job = pool.jobs[reference]
    try:
        _, reply, context = ray.get(reference)
    except ray.exceptions.RayActorError:
        _replace(pool, reference)
        reference = _submit(pool, run, job)
        try:
            _, reply, context = ray.get(reference)
        except ray.exceptions.RayActorError:
            _replace(pool, reference)
            raise
    _give_back(pool, reference)
    return reply, context


def _replace(pool: Any, reference: Any) -> None:
    """Drop the process that died with its message, and have another join the pool once the cluster has started it."""
    import ray

    pool.jobs.pop(reference, None)
    ray.kill(pool._future_to_actor.pop(reference))  # it may only have been out of reach
    log.warning("a process that clients train in has died; another one takes its place where there is room")
    new = pool.create_actor_fn()

    def join() -> None:
        try:
            ray.get(new.__ray_ready__.remote())
        except ray.exceptions.RayError:
            return
        pool.pool.append(new)

    threading.Thread(target=join, daemon=True).start()
