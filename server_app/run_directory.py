"""The run directory: everything that a run leaves behind, and what it was made with."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from hyperlora.config.renamed import current_names
from hyperlora.config.schema import ConfigError, RunConfig, Scalar
from hyperlora.reporting.run_files import read_records
from hyperlora.storage.files import (
    PRIVATE_DIRECTORY,
    PRIVATE_FILE,
    StorageError,
    append_bytes,
    home_directory,
    remove_unfinished,
    write_json,
    write_text,
)
from hyperlora.storage.run_names import ASKED, CONFIG, ERROR, EVALUATION, METRICS
from hyperlora.storage.signing import SigningKey
from server_app.tightening import tightens
from strategies.engine.checkpoint import CheckpointStore

log = logging.getLogger(__name__)
LOCK, PATIENCE = ".lock", 10.0
"""Who writes to a run directory holds this file's lock; a run that is just being ended gets so many seconds."""
PACKAGES = ("hyperlora", "flwr", "ray", "torch", "torchvision", "timm", "peft", "transformers", "datasets", "numpy")
MAY_CHANGE = (
    "run.",
    "federation.rounds",
    "federation.evaluate",
    "federation.join",
    "federation.round-timeout",
    "train.embedding-cache-mb",
)
PLANNED = ("federation.rounds", "federation.evaluate-every", "privacy.epsilon")
"""What the noise of a run of sums is planned by before round 1, so that the whole run costs its epsilon."""


@dataclass(frozen=True)
class RunDirectory:
    """An absolute path that exists, with the few ways in which files get there; they are the owner's alone.

    Attributes:
        path: the directory.
        resume: whether it is to hold a run to go on with, or none.
        rounds: how many the run is to have in all; 0 where that is not known.
    """

    path: Path
    resume: bool = False
    rounds: int = 0

    @classmethod
    def open(cls, output_dir: str, *, resume: bool = False, rounds: int = 0) -> RunDirectory:
        """Make the directory, or take the one of an earlier run to go on in it.

        An empty ``output_dir`` makes a new one under ``~/hyperlora-runs``.

        Raises:
            ConfigError: the path is relative, cannot be made, holds a run (without ``resume``) or none (with it), or
                one that has ended with all its rounds.
        """
        path = Path(output_dir) if output_dir else _default_path()
        if not path.is_absolute():
            raise ConfigError(f"run.output-dir must be an absolute path, got '{output_dir}'")
        directory = cls(path, resume, rounds)
        directory._check()
        try:
            path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.output-dir '{path}' cannot be made: {error.strerror}") from error
        return directory

    def _check(self) -> None:
        if (self.path / METRICS).exists() and not self.resume:
            raise ConfigError(
                f"run.output-dir '{self.path}' already holds a run; name a new one, or go on with run.resume"
            )
        if self.resume and not (self.path / CONFIG).exists():
            raise ConfigError(f"run.output-dir '{self.path}' holds no run to go on with")
        made = self.recorded_rounds() if self.resume and self.has_results else 0
        if made and made >= self.rounds > 0:
            raise ConfigError(
                f"{made} rounds of the run in '{self.path}' are made and federation.rounds is {self.rounds}: raise it"
            )

    @contextmanager
    def held(self, patience: float = PATIENCE) -> Iterator[None]:
        """Keep other runs out of the directory inside the block, and drop the unfinished files of an earlier one.

        Raises:
            ConfigError: another run still writes to it after ``patience`` seconds, or has written to it meanwhile.
        """
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise ConfigError(f"another run writes to run.output-dir '{self.path}': let it end, or stop it") from None
        except OSError as error:
            raise ConfigError(f"run.output-dir '{self.path}' cannot be used: {error.strerror}") from error
        try:
            self._check()
            remove_unfinished(self.path)
            yield
        finally:
            lock.release()

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as indented JSON, in one step; raises StorageError."""
        write_json(self.path / name, value, mode=PRIVATE_FILE)

    def append_json(self, name: str, value: Any) -> None:
        """Append ``value`` as one line of JSON and wait until it is on the disk; raises StorageError."""
        append_bytes(self.path / name, (json.dumps(value) + "\n").encode())

    def keep_config(self, config: RunConfig) -> None:
        """Write ``config.json``; raises ConfigError as :meth:`check_config`, and StorageError."""
        self.check_config(config)
        self.write_json(CONFIG, config.flat())

    def check_config(self, config: RunConfig) -> None:
        """Compare a configuration with the one that the run began with, where there is one.

        What may differ is ``MAY_CHANGE``, and what makes the run safer (:mod:`server_app.tightening`); in a run of sums
        with noise nothing of ``PLANNED``.

        Raises:
            ConfigError: another key differs, so that the run could not go on as it began.
        """
        path, flat = self.path / CONFIG, config.flat()
        kept = current_names(self._settings()) if path.exists() else flat
        before = {**RunConfig().flat(), **kept}  # a key that is newer than the run had its default
        changed = [name for name in flat if flat[name] != before[name] and not _may_change(name, before, flat)]
        if changed:
            raise ConfigError(f"the run in '{self.path}' cannot go on with another {', '.join(changed)}")

    def _settings(self) -> dict[str, Any]:
        path = self.path / CONFIG
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"'{path}' cannot be read ({error}), so the run cannot go on") from error

    def keep_cohort(self, server_round: int, cohort: Sequence[str]) -> None:
        """Write down who is about to be asked to train, and wait until it is on the disk; raises StorageError."""
        self.append_json(ASKED, {"server_round": server_round, "cohort": list(cohort)})

    def cohorts(self) -> list[list[str]]:
        """Return all cohorts that were ever asked, those of rounds that were made again too.

        A line that was not written to its end is dropped: its cohort was not asked.
        """
        path = self.path / ASKED
        records = read_records(path) if path.exists() else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in records), mode=PRIVATE_FILE)
        return [record["cohort"] for record in records]

    def recorded_rounds(self) -> int:
        """Return how many rounds have their line in metrics.jsonl."""
        return len(self._records())

    def seconds_so_far(self) -> float:
        """Return how long the run took up to its last recorded round, stops left out; 0 where that is not known."""
        records = self._records()
        return float(records[-1]["seconds"].get("elapsed", 0.0)) if records else 0.0

    @property
    def has_results(self) -> bool:
        """Whether the run came to its end: its evaluation is what is written last."""
        return (self.path / EVALUATION).exists()

    def forget_results(self) -> None:
        """Drop the evaluation of a run that goes on: it is no longer that of the last round."""
        (self.path / EVALUATION).unlink(missing_ok=True)

    def forget_rounds_after(self, last_round: int) -> None:
        """Drop the lines of metrics.jsonl that are of later rounds: they will be made again."""
        kept = [json.dumps(record) + "\n" for record in self._records() if record["server_round"] <= last_round]
        write_text(self.path / METRICS, "".join(kept), mode=PRIVATE_FILE)

    def _records(self) -> list[dict[str, Any]]:
        path = self.path / METRICS
        return read_records(path) if path.exists() else []

    @contextmanager
    def recording_errors(self) -> Iterator[None]:
        """Write the sentence of an exception to ``error.txt`` and let the exception go on."""
        try:
            yield
        except Exception as error:
            sentence = str(error) or type(error).__name__
            try:
                write_text(self.path / ERROR, sentence + "\n", durable=False, mode=PRIVATE_FILE)
            except StorageError as full:
                log.warning("%s", full)
            raise


def open_checkpoints(directory: RunDirectory, config: RunConfig) -> CheckpointStore:
    """Return the checkpoints of a run, signed and asked for signatures where its settings name a key.

    Raises:
        StorageError: the key cannot be used.
    """
    named = config.run.signing_key
    key = SigningKey.read(Path(named)) if named else None
    return CheckpointStore(directory.path / "checkpoints", keep=config.run.checkpoints_kept, key=key)


def describe_environment(seed: int, fingerprint: str) -> dict[str, Any]:
    """Return versions, seed, backbone fingerprint and machine as JSON values."""
    return {
        "seed": seed,
        "backbone_fingerprint": fingerprint,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _default_path() -> Path:
    return home_directory() / "hyperlora-runs" / datetime.now().strftime("%Y%m%d-%H%M%S-%f")


def _may_change(name: str, before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> bool:
    """Tell whether a run may go on with another value of a key."""
    noised = after["privacy.mode"] == "sums" and (before["privacy.epsilon"] or after["privacy.epsilon"])
    if noised and name in PLANNED:
        return False
    return name.startswith(MAY_CHANGE) or tightens(name, before, after)
