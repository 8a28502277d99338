"""End every process of a run, those that lost their parent too.

Each process of a run inherits one environment variable with the run's mark, which survives re-parenting.
Ray's workers overwrite their environment with a title: they are found as descendants, or as members of a
session (of processes) that a marked process belongs to.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable

import psutil

MARKER = "HYPERLORA_RUN"


def marked_processes(mark: str, spared: int | None = None) -> set[psutil.Process]:
    """Return the living processes that bear ``mark``, their descendants and the rest of their sessions.

    Args:
        mark: of the run.
        spared: session that is the user's and not the run's, of which only bearers and descendants are returned; this
            process's own by default.
    """
    everyone = list(psutil.process_iter())
    bearers = [process for process in everyone if _bears(process, mark)]
    sessions = {_session(process) for process in bearers} - {None, os.getsid(0) if spared is None else spared}
    found = set(bearers) | {process for process in everyone if _session(process) in sessions}
    for process in bearers:
        with contextlib.suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return {process for process in found if process.pid != os.getpid() and _alive(process)}


def end_marked(mark: str, patience: float = 5.0, spared: int | None = None) -> None:
    """Terminate every process that :func:`marked_processes` finds; kill what still lives after ``patience`` seconds."""
    known = marked_processes(mark, spared)
    _each(known, psutil.Process.terminate)
    _await_end(known, patience)
    for _ in range(10):
        known |= marked_processes(mark, spared)
        left = {process for process in known if _alive(process)}
        if not left:
            break
        _each(left, psutil.Process.kill)
        _await_end(left, 1.0)
    _each(known, lambda process: process.wait(timeout=0))  # our own children leave no zombies either


def _bears(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARKER) == mark)
    except (psutil.Error, OSError):
        return False


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _each(processes: Iterable[psutil.Process], act: Callable[[psutil.Process], object]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            act(process)


def _await_end(processes: Iterable[psutil.Process], patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(map(_alive, processes)):
        time.sleep(0.05)
