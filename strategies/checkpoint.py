"""Checkpoints of a run: one file for each round, of which the newest few are kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.state_file import read_state, write_state
from models.state_tree import StateError

log = logging.getLogger(__name__)
KIND = "checkpoint"
NAME = re.compile(r"round-(\d{5,})\.safetensors")


@dataclass(frozen=True)
class CheckpointStore:
    """Saves and finds the checkpoints of one run; one process writes at a time.

    Args:
        directory: where the files ``round-00012.safetensors`` lie; made by the first :meth:`save`.
        keep: number of files kept, at least 1; 2 and more leave one to fall back to where the newest is damaged.

    Raises:
        ValueError: ``keep`` is less than 1.
    """

    directory: Path
    keep: int

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"expected to keep at least 1 checkpoint, got {self.keep}")

    def save(self, server_round: int, value: Any, classes: Sequence[type]) -> Path:
        """Write the state after ``server_round`` and return its file; only then remove files no longer kept.

        Files of later rounds are removed too: they are of a continuation that was given up, and :meth:`latest` must
        not return to it.

        Raises:
            StateError: the state cannot be written, or could not be restored with ``classes``; older files stay.
        """
        path = self.directory / f"round-{server_round:05d}.safetensors"
        write_state(path, {"server_round": server_round, "value": value}, kind=KIND, classes=classes)
        self._prune(server_round)
        return path

    def latest(self, classes: Sequence[type]) -> tuple[int, Any] | None:
        """Return round and state of the newest checkpoint that can be used, or None where there is no checkpoint.

        One that cannot be used is named in a warning and the one before it is taken.

        Raises:
            StateError: there are checkpoints, and none can be used.
        """
        paths, reasons = self._paths(), []
        for server_round in sorted(paths, reverse=True):
            try:
                return server_round, self._read(server_round, paths[server_round], classes)
            except StateError as error:
                log.warning("%s", error)
                reasons.append(str(error))
        if reasons:
            raise StateError(f"no checkpoint in '{self.directory}' can be used: {' | '.join(reasons)}")
        return None

    def _read(self, server_round: int, path: Path, classes: Sequence[type]) -> Any:
        saved = read_state(path, classes, kind=KIND)
        if saved["server_round"] != server_round:
            raise StateError(f"the state file '{path}' cannot be used: it is of round {saved['server_round']}")
        return saved["value"]

    def _paths(self) -> dict[int, Path]:
        found = ((NAME.fullmatch(path.name), path) for path in self.directory.glob("round-*.safetensors"))
        return {int(match[1]): path for match, path in found if match}

    def _prune(self, server_round: int) -> None:
        paths = self._paths()
        kept = sorted(number for number in paths if number <= server_round)[-self.keep :]
        leftovers = list(self.directory.glob(".round-*.tmp"))
        for path in leftovers + [path for number, path in paths.items() if number not in kept]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("the file '%s' cannot be removed: %s", path, error.strerror)
