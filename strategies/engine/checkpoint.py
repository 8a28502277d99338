"""Checkpoints of a run: one file for each round, of which the newest few are kept.

The states of the process's global random generators, as a checkpoint keeps them.

Nothing of the product draws from them (randomness comes from named seeds, :mod:`hyperlora.seeds`); a method
or library that does still goes on where it stopped.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperlora.messages.signature import ClientCard
from hyperlora.storage.state_file import read_state, write_state
from hyperlora.storage.state_tree import StateError
from models.personalization.signature import Signature
from strategies.engine.history import History
from strategies.engine.records import ClientScore


def capture() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as a tree of tensors and numbers."""
    kind, words, *rest = np.random.get_state()
    numbers = torch.from_numpy(np.asarray(words).astype(np.int64))
    return {"python": random.getstate(), "numpy": [str(kind), numbers, *rest], "torch": torch.get_rng_state()}


def restore(states: Mapping[str, Any]) -> None:
    """Inverse of :func:`capture`; what is not in ``states`` stays as it is."""
    if "python" in states:
        random.setstate(states["python"])
    if "numpy" in states:
        kind, numbers, *rest = states["numpy"]
        np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    if "torch" in states:
        torch.set_rng_state(states["torch"])


log = logging.getLogger(__name__)
KIND = "checkpoint"
NAME = re.compile(r"round-(\d{5,})\.safetensors")
VERSION = 3
OWN_CLASSES = (ClientCard, Signature, ClientScore, History)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run goes on from.

    Attributes:
        server_round: the last round that is in it.
        state: the method's state: adapters, memory, learned modules, their optimisers and statistics.
        cards: client-id -> what the server knows of the client, also of those that left.
        scores: the last evaluation of every client.
        random_states: of the process's global generators (:mod:`strategies.engine.checkpoint`).
        history: what the clients were asked and told.
    """

    server_round: int
    state: Any
    cards: Mapping[str, ClientCard] = field(default_factory=dict)
    scores: Sequence[ClientScore] = ()
    random_states: Mapping[str, Any] = field(default_factory=dict)
    history: History = field(default_factory=History)


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

    def save(self, checkpoint: Checkpoint, classes: Sequence[type]) -> Path:
        """Write ``checkpoint`` and return its file; only then remove files no longer kept.

        Files of later rounds are removed too: they are of a continuation that was given up, and :meth:`latest` must
        not return to it.

        Raises:
            StateError: it cannot be written, or could not be restored with ``classes``; older files stay.
        """
        path = self.directory / f"round-{checkpoint.server_round:05d}.safetensors"
        content = {one.name: getattr(checkpoint, one.name) for one in fields(checkpoint)}
        write_state(path, {"version": VERSION, **content}, kind=KIND, classes=[*classes, *OWN_CLASSES])
        self._prune(checkpoint.server_round)
        return path

    def latest(self, classes: Sequence[type]) -> Checkpoint | None:
        """Return the newest checkpoint that can be used, or None where there is no checkpoint.

        One that cannot be used is named in a warning and the one before it is taken.

        Args:
            classes: the dataclasses that the method's state is made of.

        Raises:
            StateError: there are checkpoints, and none can be used.
        """
        paths, reasons = self._paths(), []
        for server_round in sorted(paths, reverse=True):
            try:
                return self._read(server_round, paths[server_round], classes)
            except StateError as error:
                log.warning("%s", error)
                reasons.append(str(error))
        if reasons:
            raise StateError(f"no checkpoint in '{self.directory}' can be used: {' | '.join(reasons)}")
        return None

    def _read(self, server_round: int, path: Path, classes: Sequence[type]) -> Checkpoint:
        saved = read_state(path, [*classes, *OWN_CLASSES], kind=KIND)
        try:
            checkpoint = Checkpoint(**_migrated(saved))
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise StateError(f"the state file '{path}' cannot be used: {error}") from error
        if checkpoint.server_round != server_round:
            raise StateError(f"the state file '{path}' cannot be used: it is of round {checkpoint.server_round}")
        return checkpoint

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


def _from_version_1(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 held the method's state alone; the clients are asked again for their cards."""
    return {"server_round": saved["server_round"], "state": saved["value"]}


def _from_version_2(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Version 2 held the history's parts one by one, without the lengths of movements."""
    parts = ("cohorts", "signatures")
    history = History(**{name: dict(saved[name]) for name in parts if name in saved})
    return {**{name: value for name, value in saved.items() if name not in parts}, "history": history}


MIGRATIONS: Mapping[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _from_version_1, 2: _from_version_2}
"""Version -> what turns the content of a checkpoint of it into the next version's."""


def _migrated(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a :class:`Checkpoint` from the content of a file of any version; raises StateError."""
    version = saved.get("version", 1)
    if version not in (*MIGRATIONS, VERSION):
        raise StateError(f"it is a checkpoint of version {version}, this program reads versions 1 to {VERSION}")
    content = {name: value for name, value in saved.items() if name != "version"}
    for step in range(version, VERSION):
        content = MIGRATIONS[step](content)
    return content
