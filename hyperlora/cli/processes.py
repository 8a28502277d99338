"""End every process of a run: with the command, at its signals, and even where the command is killed.

Each process of a run inherits an environment variable with the run's mark, which survives re-parenting.
Ray's workers overwrite their environment with a title: they are found as descendants, or as members of a
session (of processes) that a marked process belongs to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

MARKER = "HYPERLORA_RUN"
FAREWELL = b"all is tidy"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The command was asked to end; ``status`` is the exit status that says by which signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` at the first ending signal inside the block, ignore any further one."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for other in ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    with _handled_by(interrupt):
        yield


@contextmanager
def shielded() -> Iterator[None]:
    """Ignore ending signals inside the block."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def usable_cores() -> int:
    """Return the CPUs that this process may run on, which a scheduler or a container may have made fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def marked_processes(mark: str, spared: int | None = None) -> set[psutil.Process]:
    """Return the living processes that bear ``mark``, their descendants and the rest of their sessions.

    Args:
        mark: of the run.
        spared: session that is the user's and not the run's, of which only bearers and descendants are returned;
            this process's by default.
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
    _each(known, lambda process: process.wait(timeout=0))  # children of this process leave no zombies either


def _bears(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return bool(process.environ().get(MARKER) == mark)
    return False


def _session(process: psutil.Process) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(process.pid)
    return None


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _each(processes: Iterable[psutil.Process], act: Callable[[psutil.Process], object]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            act(process)


def _await_end(processes: Iterable[psutil.Process], patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(map(_alive, processes)):
        time.sleep(0.05)


@contextmanager
def guarded(mark: str, home: Path) -> Iterator[None]:
    """Watch over the block: if this process dies in it, what bears ``mark`` is ended and ``home`` removed.

    The guard is a separate process, ``python -m hyperlora.cli.processes MARK HOME SESSION``. It reads from a pipe
    that the system closes when the command is gone, and it bears no mark, so that it does not end itself.
    """
    guard = subprocess.Popen(
        [sys.executable, "-P", "-m", "hyperlora.cli.processes", mark, str(home), str(os.getsid(0))],
        env={name: value for name, value in os.environ.items() if name != MARKER},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.communicate(FAREWELL)


def watch(mark: str, home: Path, session: int) -> None:
    """Wait for the end of a command in ``session``, and tidy up unless it said that it has."""
    if sys.stdin.buffer.read() == FAREWELL:
        return
    end_marked(mark, spared=session)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
