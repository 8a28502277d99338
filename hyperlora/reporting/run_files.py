"""What a run directory holds, read back: configuration, rounds, scores, environment and clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hyperlora.config.schema import RunConfig
from strategies.federation.client_list import FILE_NAME, ClientList, ClientListError


class RunFilesError(ValueError):
    """A run directory does not hold what was asked for; the message is one sentence."""


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
            ConfigError: its configuration is not one of this version's.
        """
        config = _json_of(path / "config.json")
        try:
            lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        except OSError as error:
            raise RunFilesError(f"the run in '{path}' has no round yet: it has no metrics.jsonl") from error
        records = [json.loads(line) for line in lines if line.endswith("\n")]
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


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFilesError(f"'{path.parent}' holds no run: its {path.name} cannot be read") from error
    except ValueError as error:
        raise RunFilesError(f"'{path}' is damaged: it is not JSON ({error})") from error
