"""A disk that is full: the run ends with a sentence, the last checkpoint stays, and with room again it goes on.

Where the system lets us mount, the run directory lies on a small file system of its own that is filled up; elsewhere
the system refuses this process any longer file (RLIMIT_FSIZE).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message

from benchmarks.local_grid import LocalGrid
from hyperlora.messages.train import TrainRequest
from tests.faults.server import forked, make_run, metrics_of, outcome, require_success, warm_up
from tests.faults.table import Row

NEW_MOUNTS, PRIVATE, RECURSIVE = 0x20000, 1 << 18, 1 << 14
SIZE = 64 * 2**20
FULL_IN_ROUND = 4


def full_disk(directory: Path, alone: Path) -> Row:
    """Fill the disk in round 4 of a run, make room, resume; compare with the run in ``alone``."""
    warm_up()
    require_success(forked(lambda: _rehearse(directory), directory / "small.log"))
    seen = json.loads((directory / "seen.json").read_text())
    same = seen["metrics"] == metrics_of(alone) and seen["adapters"] == len(outcome(alone)[2])
    sentence, last = seen["sentence"], seen["checkpoint"]
    passed = same and last == FULL_IN_ROUND - 1 and "cannot be written: " in sentence and "\n" not in sentence
    end = "resumed with room: same metrics" if same else "resumed with room: OTHER METRICS"
    shown = sentence.replace(str(directory), "")
    expected = "the run ends with a sentence; the checkpoint before stays; resumed with room, the same metrics"
    return Row("the disk is full", expected, f"{seen['means']}: {shown}; checkpoint of round {last}; {end}", passed)


class FillingGrid(LocalGrid):
    """Fills the disk before the messages of round 4 are answered."""

    fill: Callable[[], None] = staticmethod(lambda: None)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        config: Any = sent[0].content["config"] if sent else {}
        if sent and sent[0].metadata.message_type == TrainRequest.TYPE and config["server_round"] == FULL_IN_ROUND:
            self.fill()
        return super().push_messages(sent)


def _rehearse(directory: Path) -> None:
    """In a process of its own: run until the disk is full, make room, resume, and write down what was seen."""
    place = directory / "small"
    place.mkdir(parents=True)
    mounted = _mounted(place)
    ballast = place / "ballast"
    FillingGrid.fill = staticmethod((lambda: _fill(ballast)) if mounted else _forbid)
    sentence = "the run came to its end"
    try:
        make_run(place / "run", grid=FillingGrid)
    except Exception as error:
        sentence = str(error)
    if mounted:
        ballast.unlink()
    else:
        _allow(resource.RLIM_INFINITY)
    names = sorted(path.name for path in (place / "run" / "checkpoints").iterdir())
    FillingGrid.fill = staticmethod(lambda: None)
    make_run(place / "run", resume=True)
    seen = {
        "means": "a full tmpfs" if mounted else "RLIMIT_FSIZE",
        "sentence": sentence,
        "checkpoint": int(names[-1][6:11]),
        "metrics": metrics_of(place / "run"),
        "adapters": len(list((place / "run" / "adapters").iterdir())),
    }
    (directory / "seen.json").write_text(json.dumps(seen))


def _mounted(place: Path) -> bool:
    """Put a small file system under ``place`` that this process alone sees; return whether that was possible."""
    system = ctypes.CDLL(None, use_errno=True)
    if system.unshare(NEW_MOUNTS) or system.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None):
        return False
    return bool(system.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={SIZE}".encode()) == 0)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            os.fsync(file.fileno())


def _forbid() -> None:
    _allow(100)


def _allow(length: int) -> None:
    """Have the system refuse this process any file longer than ``length`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
