"""End every process of a run, those that lost their parent too.

Each process of a run inherits one environment variable with the run's mark. That survives re-parenting;
what hides its environment (Ray's workers overwrite theirs with a title) is found as a child of one that
shows it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable

import psutil

MARKER = "HYPERLORA_RUN"


def marked_processes(mark: str) -> set[psutil.Process]:
    """Return the living processes whose environment holds ``mark``, with all their descendants."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARKER) == mark:
                found |= {process, *process.children(recursive=True)}
    return {process for process in found if process.pid != os.getpid() and _alive(process)}


def end_marked(mark: str, patience: float = 5.0) -> None:
    """Terminate every process that bears ``mark``; kill what still lives after ``patience`` seconds."""
    known = marked_processes(mark)
    _signal(known, psutil.Process.terminate)
    _await_end(known, patience)
    for _ in range(10):
        known |= marked_processes(mark)
        left = {process for process in known if _alive(process)}
        if not left:
            return
        _signal(left, psutil.Process.kill)
        _await_end(left, 1.0)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            send(process)


def _await_end(processes: Iterable[psutil.Process], patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(map(_alive, processes)):
        time.sleep(0.05)
