"""Follow a run to its end and show its progress."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from hyperlora.cli import flower
from hyperlora.cli.flower import Connection, RunStatus

LOOK_EVERY = 0.2
ASK_EVERY = 3.0


class Tail:
    """The lines that are appended to a text file from now on; the file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """Return the complete lines written since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            complete = file.read().rpartition(b"\n")[0]
        if not complete:
            return []
        self._position += len(complete) + 1
        return complete.decode("utf-8", errors="replace").splitlines()


def follow(connection: Connection, run_id: str, log: subprocess.Popen[bytes], look: Callable[[], None]) -> RunStatus:
    """Call ``look`` until the run has ended and return how it ended.

    The log stream ends with the run, which costs nothing to notice; each question to Flower costs about
    two seconds of a CPU, so it is put only after that.
    """
    while log.poll() is None:
        look()
        time.sleep(LOOK_EVERY)
    while not (state := flower.status(connection, run_id)).finished:
        look()
        time.sleep(ASK_EVERY)
    look()
    return state


def failure(state: RunStatus, output_dir: Path | None, since: float) -> str:
    """Return one sentence that says why a run failed.

    The ServerApp's own ``error.txt``, if it was written after ``since``, knows best; then Flower's details.
    """
    told = output_dir / "error.txt" if output_dir else None
    if told and told.is_file() and told.stat().st_mtime >= since:
        reason = told.read_text(encoding="utf-8", errors="replace").strip()
        if reason:
            return reason
    return f"the run ended as {state.status}" + (f": {state.details}" if state.details else "")
