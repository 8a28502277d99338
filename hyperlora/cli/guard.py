"""End a run's processes when the command that started them dies without doing so itself, as by SIGKILL.

The guard is a process of its own: ``python -m cli.guard MARK HOME SESSION``. It reads from a pipe that the
system closes when the command is gone, and it bears no mark, so that it is none of the processes that it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperlora.cli.processes import MARKER, end_marked

FAREWELL = b"all is tidy"


@contextmanager
def guarded(mark: str, home: Path) -> Iterator[None]:
    """Watch over the block: if this process dies in it, what bears ``mark`` is ended and ``home`` removed."""
    guard = subprocess.Popen(
        [sys.executable, "-P", "-m", "hyperlora.cli.guard", mark, str(home), str(os.getsid(0))],
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
    with contextlib.suppress(OSError):
        shutil.rmtree(home)


if __name__ == "__main__":
    watch(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
