"""Checkpoints of a run: one file for each round, of which the newest few are kept."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperlora.messages.signature import ClientCard
from hyperlora.storage.files import StorageError, remove_unfinished
from hyperlora.storage.shared_state import read_shared_state, write_shared_state
from hyperlora.storage.signing import SigningKey
from hyperlora.storage.state import StateError, read_state, write_state
from models.personalization.signature import Signature
from strategies.engine.history import History
from strategies.engine.records import ClientScore

log = logging.getLogger(__name__)
KIND, VERSION = "checkpoint", 5
NAME = re.compile(r"round-(\d{5,})\.pt")
CLASSES = (ClientCard, Signature, ClientScore, History)


class OldRunError(StorageError):
    """The run was made by a version whose checkpoints are no longer read."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run goes on from.

    Attributes:
        server_round: the last round that is in it.
        state: the method's state: adapters, memory, learned modules, their optimisers and statistics.
        cards: client-id -> what the server knows of the client, also of those that left.
        scores: the last evaluation of every client.
        random_states: of the process's global generators, as :func:`capture` returns them.
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
        directory: where the files ``round-00012.pt`` lie; made by the first :meth:`save`.
        keep: number of files kept, at least 1; 2 and more leave one to fall back to where the newest is damaged.
        key: signs what is saved; only what it signed is found. None neither signs nor asks for signatures.

    Raises:
        ValueError: ``keep`` is less than 1.
    """

    directory: Path
    keep: int
    key: SigningKey | None = None

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
        path = self._path(checkpoint.server_round)
        write_state(path, _content(checkpoint), [*classes, *CLASSES], kind=KIND, version=VERSION, key=self.key)
        self._prune(checkpoint.server_round)
        return path

    def latest(self, classes: Sequence[type]) -> Checkpoint | None:
        """Return the newest checkpoint that can be used, or None where there is no checkpoint.

        One that cannot be used is named in a warning and the one before it is taken.

        Args:
            classes: the dataclasses that the method's state is made of.

        Raises:
            OldRunError: there are only checkpoints of an older version.
            StateError: there are checkpoints, and none can be used.
        """
        reasons = []
        for server_round in sorted(self._paths(), reverse=True):
            try:
                return self.read(server_round, classes)
            except StateError as error:
                log.warning("%s", error)
                reasons.append(str(error))
        if reasons:
            raise StateError(f"no checkpoint in '{self.directory}' can be used: {' | '.join(reasons)}")
        if any(self.directory.glob("round-*.safetensors")):
            raise OldRunError(
                f"the run in '{self.directory.parent}' was made by an older version of hyperlora, whose checkpoints "
                "this version does not read: make the run again, or go on with the version that made it"
            )
        return None

    def read(self, server_round: int, classes: Sequence[type]) -> Checkpoint:
        """Return the checkpoint of one round; raises StateError where it is not there or cannot be used."""
        path = self._path(server_round)
        content = read_state(path, [*classes, *CLASSES], kind=KIND, version=VERSION, key=self.key)
        try:
            checkpoint = Checkpoint(**content)
        except TypeError as error:
            raise StateError(f"the state file '{path}' cannot be used: {error}") from error
        if checkpoint.server_round != server_round:
            raise StateError(f"the state file '{path}' cannot be used: it is of round {checkpoint.server_round}")
        return checkpoint

    def _path(self, server_round: int) -> Path:
        return self.directory / f"round-{server_round:05d}.pt"

    def _paths(self) -> dict[int, Path]:
        found = ((NAME.fullmatch(path.name), path) for path in self.directory.glob("round-*.pt"))
        return {int(match[1]): path for match, path in found if match}

    def _prune(self, server_round: int) -> None:
        paths = self._paths()
        kept = sorted(number for number in paths if number <= server_round)[-self.keep :]
        try:
            remove_unfinished(self.directory)
            for path in (path for number, path in paths.items() if number not in kept):
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the file '%s' cannot be removed: %s", error.filename, error.strerror)


def share(checkpoint: Checkpoint, path: Path, classes: Sequence[type]) -> None:
    """Write a checkpoint for others, who read it by :func:`shared`.

    Raises:
        StorageError: it cannot be written, or could not be restored with ``classes``.
    """
    write_shared_state(path, _content(checkpoint), [*classes, *CLASSES], kind=KIND, version=VERSION)


def shared(path: Path, classes: Sequence[type]) -> Checkpoint:
    """Return the checkpoint that :func:`share` wrote; raises StateError where it cannot be used."""
    content = read_shared_state(path, [*classes, *CLASSES], kind=KIND, version=VERSION)
    try:
        return Checkpoint(**content)
    except TypeError as error:
        raise StateError(f"the state file '{path}' cannot be used: {error}") from error


def _content(checkpoint: Checkpoint) -> dict[str, Any]:
    return {part.name: getattr(checkpoint, part.name) for part in fields(checkpoint)}


def capture() -> dict[str, Any]:
    """Return the states of the global random generators of Python, NumPy and torch, in what a state file holds.

    Nothing of the product draws from them (randomness comes from named seeds, :mod:`hyperlora.seeds`); a method or
    library that does still goes on where it stopped.
    """
    kind, words, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }


def restore(states: Mapping[str, Any]) -> None:
    """Inverse of :func:`capture`; a generator whose state is not in ``states`` stays as it is."""
    if "python" in states:
        random.setstate(states["python"])
    if "numpy" in states:
        kind, numbers, *rest = states["numpy"]
        np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    if "torch" in states:
        torch.set_rng_state(states["torch"])
