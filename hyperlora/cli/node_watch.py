"""Notice that a Ray cluster loses a node during a run.

Flower keeps the client processes of a node that is gone in its pool. Each answers at once with an error and is taken
again, so that nearly every later message of the run goes to one of them: the run is better begun anew, from its
checkpoint. Ray is asked by a process of its own, ``python -m hyperlora.cli.node_watch``.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LOST = 3
LOOK_EVERY = 2.0


class NodeLostError(Exception):
    """The cluster has lost a node that it had when the watch began."""


@contextmanager
def nodes_watched(environment: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """Give a function that raises NodeLostError once a node is gone, some 15 s after it.

    Args:
        environment: of the simulation, which names its cluster; without one nothing is watched.
    """
    if "RAY_ADDRESS" not in environment:
        yield lambda: None
        return
    watch = subprocess.Popen(
        [sys.executable, "-P", "-m", "hyperlora.cli.node_watch"],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def look() -> None:
        if watch.poll() == LOST:
            raise NodeLostError

    try:
        yield look
    finally:
        watch.terminate()
        watch.wait()


def wait_for_loss() -> None:
    """Return when a node that the cluster had at first is not alive any more."""
    import ray

    def alive() -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    first = alive()
    while first <= alive():
        time.sleep(LOOK_EVERY)


if __name__ == "__main__":
    wait_for_loss()
    sys.exit(LOST)
