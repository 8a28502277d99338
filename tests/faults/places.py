"""A run directory that is another user's or read-only: every command does its work or says one sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults.run_files import COMMANDS, attempt
from tests.faults.table import Row

NOBODY = 65534
MODES = {"another user's": (0o700, 0o600), "read-only": (0o555, 0o444)}


def place_rows(directory: Path, finished: Path) -> Iterator[Row]:
    """Try every command on a copy of the run in ``finished`` as a user without rights."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    for name, modes in MODES.items():
        place = directory / name.replace("'", "").replace(" ", "-")
        shutil.copytree(finished, place)
        _restrict(place, modes)
        found = {command: _as_nobody(command, place) for command in COMMANDS}
        wrong = [f"{command}: {seen}" for command, seen in found.items() if seen not in ("done", "refused")]
        refused = sum(seen == "refused" for seen in found.values())
        seen = wrong[0] if wrong else f"{refused} of {len(found)} refused"
        yield Row(f"a run directory that is {name}", "done, or refused in one sentence", seen, not wrong, len(found))


def _restrict(place: Path, modes: tuple[int, int]) -> None:
    for path in [*place.rglob("*"), place]:
        path.chmod(modes[0] if path.is_dir() else modes[1])


def _as_nobody(command: str, place: Path) -> str:
    """Do a command in a process without rights and return what came of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        if not os.getuid():
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        outcome = attempt(COMMANDS[command], place)
        os.write(writing, ("done" if outcome is None else outcome or "refused").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        seen = told.read()
    os.waitpid(child, 0)
    return seen
