"""What a run directory holds, read back: configuration, rounds, scores, environment, clients and the backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from hyperlora.config.schema import RunConfig
from hyperlora.storage.files import storage_errors
from hyperlora.storage.run_names import (
    BACKBONE,
    CLIENTS,
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    LEFT_OUT,
    METRICS,
    is_published,
    located,
)
from hyperlora.task import build_model
from models.adapters.adapted_model import AdaptedModel
from strategies.engine.records import RoundRecord
from strategies.federation.client_list import ClientList, ClientListError


class RunFilesError(ValueError):
    """A run directory does not hold what was asked for, or cannot take it; the message is one sentence."""


@dataclass(frozen=True)
class RunFiles:
    """A run directory, opened for reading.

    Attributes:
        path: the directory.
        config: its configuration.
        records: its rounds, as in ``metrics.jsonl``; a line that is still being written is left out.
    """

    path: Path
    config: RunConfig
    records: Sequence[dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> RunFiles:
        """Read the directory of a run, finished or not.

        Raises:
            RunFilesError: it holds no run, no round of it is made, or a file is damaged.
            ConfigError: its configuration cannot be read by this version.
        """
        path = located(path)
        config = _json_of(path / CONFIG, dict[str, bool | int | float | str])
        try:
            records = read_records(path / METRICS)
        except OSError as error:
            raise RunFilesError(f"the run in '{path}' has no round yet: it has no metrics.jsonl") from error
        if not records:
            raise RunFilesError(f"the run in '{path}' has no round yet: its metrics.jsonl is empty")
        return cls(path.absolute(), RunConfig.parse_stored(config), records)

    def place_for(self, what: str) -> Path:
        """Return where what is made from the run goes: below it, for a published one below the current directory."""
        return (Path.cwd() if is_published(self.path) else self.path) / what

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.name

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """The last evaluation of every client; empty where the run has not ended."""
        path = self.path / EVALUATION
        return list(_json_of(path, list[Score])) if path.exists() else []

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Nodes and clients that take no part, and why."""
        path = self.path / LEFT_OUT
        return dict(_json_of(path, dict[str, str])) if path.exists() else {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, seed, fingerprint and machine."""
        return dict(_json_of(self.path / ENVIRONMENT, Environment))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the backbone."""
        return str(self.environment["backbone_fingerprint"])

    @cached_property
    def clients(self) -> ClientList | None:
        """The clients with their signatures, or None where the run keeps no list of them (yet)."""
        path = self.path / CLIENTS
        if not path.exists():
            return None
        try:
            return ClientList.from_json(_json_of(path, Any))
        except ClientListError as error:
            raise RunFilesError(f"the run in '{self.path}' cannot be used: {error}") from error

    def require_clients(self) -> ClientList:
        """Return the clients.

        Raises:
            RunFilesError: the run has no list of them.
        """
        if self.clients is None:
            raise RunFilesError(
                f"the run in '{self.path}' has no {CLIENTS}, which comes with its first checkpoint; "
                f"go on with: hyperlora run --resume {self.path}"
            )
        return self.clients

    def rebuild_model(self, weights: Path | None = None) -> AdaptedModel:
        """Return the run's backbone, built again on this machine, with an adapter of the run's shape on it.

        Args:
            weights: a safetensors file (or directory of transformers) to take instead of the configured one, or of
                that which a published run comes with.

        Raises:
            BackboneError, AdapterError: it cannot be built.
            RunFilesError: its weights are not those of the run.
        """
        config, beside = self.config.model, self.path / BACKBONE
        weights = weights or (beside if beside.is_file() else None)
        if weights:
            config = config.model_copy(update={"weights": str(weights.absolute())})
        if config.weights and not Path(config.weights).exists():
            raise RunFilesError(
                f"the run's weights '{config.weights}' are not on this machine: name them with --weights"
            )
        names = self.clients.class_names if self.clients else ()  # the run's data may be on another machine
        model = build_model(self.config.data, config, self.config.lora, names)
        built = model.backbone.fingerprint
        if built != self.fingerprint:
            raise RunFilesError(
                f"the weights of '{config.name}' here have fingerprint {built[:12]}, the run was made with "
                f"{self.fingerprint[:12]}: name the run's own file with --weights"
            )
        return model


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """Return the rounds in a ``metrics.jsonl``, without a line that is still being written.

    Raises:
        OSError: it cannot be read.
        RunFilesError: a line is no round.
    """
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [_record_of(metrics, number, line) for number, line in enumerate(lines, start=1) if line.endswith("\n")]


def _record_of(metrics: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        return {**asdict(TypeAdapter(Round).validate_python(record)), **record}
    except (ValueError, RecursionError) as error:
        raise RunFilesError(f"'{metrics}' is damaged: line {number} holds no round ({_essence(error)})") from error


def require_adapter(directory: Path) -> Path:
    """Return the directory of an adapter in PEFT's format; raises RunFilesError where it is damaged."""
    _json_of(directory / "adapter_config.json", PeftConfig)
    weights = directory / "adapter_model.safetensors"
    try:
        with safe_open(weights, framework="pt") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise RunFilesError(f"'{weights}' is damaged: {error}") from error
    if not names:
        raise RunFilesError(f"'{weights}' is damaged: it holds no tensors")
    return directory


def require_new(path: Path) -> None:
    """Raise RunFilesError where there is something at ``path`` already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunFilesError(f"'{path}' is there already: name another directory with --to")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Make the directory ``path`` and yield it absolute; what was written is gone again where the block fails.

    Raises:
        RunFilesError: there is something in it.
        StorageError: it cannot be made.
    """
    require_new(path)
    with storage_errors(path, "cannot be made"):
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield path.absolute()
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Spread:
    """A figure over clients, as a share."""

    mean: float
    std: float
    worst_tenth: float


@dataclass(frozen=True)
class Group:
    """What the evaluation of a group of clients must hold for a report."""

    clients: int
    zero_step: Spread
    k_step: Spread
    by_steps: dict[str, float] = field(default_factory=dict)


@dataclass
class Round(RoundRecord):
    """What a line of ``metrics.jsonl`` must hold for a report."""

    evaluation: dict[str, Group] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """What ``environment.json`` must hold for a report."""

    packages: dict[str, str | None]
    python: str
    backbone_fingerprint: str


@dataclass(frozen=True)
class Score:
    """What an entry of ``evaluation.json`` must hold for a report."""

    client_id: str
    domain: str
    seen: bool
    track: str
    num_test: int
    zero_step: float
    k_step: float
    class_samples: Sequence[int] = ()
    class_hits: Sequence[int] = ()


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT cannot load an adapter without."""

    peft_type: str
    r: int


def _json_of(path: Path, kind: Any) -> Any:
    """Return what a file holds, once it is checked to be of the type ``kind``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFilesError(f"'{path.parent}' holds no run: its {path.name} cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise RunFilesError(f"'{path}' is damaged: it is not JSON ({error})") from error
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise RunFilesError(f"'{path}' is damaged: {_essence(error)}") from error
    return value


def _essence(error: Exception) -> str:
    """Return the first of the things that are wrong, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
