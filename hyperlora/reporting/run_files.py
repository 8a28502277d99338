"""What a run directory holds, read back: configuration, rounds, scores, environment, clients and the backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hyperlora.config.schema import RunConfig
from hyperlora.task import build_model
from models.adapters.adapted_model import AdaptedModel
from strategies.federation.client_list import FILE_NAME, ClientList, ClientListError


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
            RunFilesError: it holds no run, or no round of it is made.
            ConfigError: its configuration cannot be read by this version.
        """
        config = _json_of(path / "config.json")
        try:
            records = read_records(path / "metrics.jsonl")
        except OSError as error:
            raise RunFilesError(f"the run in '{path}' has no round yet: it has no metrics.jsonl") from error
        if not records:
            raise RunFilesError(f"the run in '{path}' has no round yet: its metrics.jsonl is empty")
        return cls(path.absolute(), RunConfig.parse_stored(config), records)

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.name

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """The last evaluation of every client; empty where the run has not ended."""
        path = self.path / "evaluation.json"
        return list(_json_of(path)) if path.exists() else []

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Nodes and clients that take no part, and why."""
        path = self.path / "left_out.json"
        return dict(_json_of(path)) if path.exists() else {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, seed, fingerprint and machine."""
        return dict(_json_of(self.path / "environment.json"))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the backbone."""
        return str(self.environment["backbone_fingerprint"])

    @cached_property
    def clients(self) -> ClientList | None:
        """The clients with their signatures, or None where the run keeps no list of them (yet)."""
        path = self.path / FILE_NAME
        if not path.exists():
            return None
        try:
            return ClientList.from_json(_json_of(path))
        except ClientListError as error:
            raise RunFilesError(f"the run in '{self.path}' cannot be used: {error}") from error

    def require_clients(self) -> ClientList:
        """Return the clients.

        Raises:
            RunFilesError: the run has no list of them.
        """
        if self.clients is None:
            raise RunFilesError(
                f"the run in '{self.path}' has no {FILE_NAME}, which comes with its first checkpoint; "
                f"go on with: hyperlora run --resume {self.path}"
            )
        return self.clients

    def rebuild_model(self, weights: Path | None = None) -> AdaptedModel:
        """Return the run's backbone, built again on this machine, with an adapter of the run's shape on it.

        Args:
            weights: a safetensors file (or directory of transformers) to take instead of the configured one.

        Raises:
            BackboneError, AdapterError: it cannot be built.
            RunFilesError: its weights are not those of the run.
        """
        config = self.config.model
        if weights:
            config = config.model_copy(update={"weights": str(weights.absolute())})
        if config.weights and not Path(config.weights).exists():
            raise RunFilesError(
                f"the run's weights '{config.weights}' are not on this machine: name them with --weights"
            )
        model = build_model(self.config.data, config, self.config.lora)
        built = model.backbone.fingerprint
        if built != self.fingerprint:
            raise RunFilesError(
                f"the weights of '{config.name}' here have fingerprint {built[:12]}, the run was made with "
                f"{self.fingerprint[:12]}: name the run's own file with --weights"
            )
        return model


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """Return the rounds in a ``metrics.jsonl``, without a line that is still being written; raises OSError."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def new_directory(path: Path) -> Path:
    """Make the directory ``path`` and return it absolute; raises RunFilesError where there is something in it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunFilesError(f"'{path}' is there already: name another directory with --to")
    path.mkdir(parents=True, exist_ok=True)
    return path.absolute()


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFilesError(f"'{path.parent}' holds no run: its {path.name} cannot be read") from error
    except ValueError as error:
        raise RunFilesError(f"'{path}' is damaged: it is not JSON ({error})") from error
