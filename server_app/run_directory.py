"""The run directory: everything that a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from protocol.config import ConfigError, RunConfig

MAY_CHANGE = ("run.", "federation.rounds", "federation.evaluate", "federation.join", "federation.round-timeout")


@dataclass(frozen=True)
class RunDirectory:
    """An absolute path that exists, with the few ways in which files get there."""

    path: Path

    @classmethod
    def open(cls, output_dir: str, *, resume: bool = False) -> RunDirectory:
        """Make the directory, or take the one of an earlier run to go on in it.

        An empty ``output_dir`` makes a new one under ``~/hyperlora-runs``.

        Raises:
            ConfigError: the path is relative, cannot be made, or holds a run (without ``resume``) or none (with it).
        """
        path = Path(output_dir) if output_dir else _default_path()
        if not path.is_absolute():
            raise ConfigError(f"run.output-dir must be an absolute path, got '{output_dir}'")
        holds_run = (path / "metrics.jsonl").exists()
        if holds_run and not resume:
            raise ConfigError(f"run.output-dir '{path}' already holds a run; name a new one, or go on with run.resume")
        if resume and not holds_run:
            raise ConfigError(f"run.output-dir '{path}' holds no run to go on with")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.output-dir '{path}' cannot be made: {error.strerror}") from error
        return cls(path)

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as indented JSON."""
        (self.path / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def append_json(self, name: str, value: Any) -> None:
        """Append ``value`` as one line of JSON."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")

    def keep_config(self, config: RunConfig) -> None:
        """Write ``config.json``; where there is one, the run goes on and only ``MAY_CHANGE`` may differ from it.

        Raises:
            ConfigError: another key differs, so that the run could not go on as it began.
        """
        path, flat = self.path / "config.json", config.flat()
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else flat
        changed = [name for name in flat if flat[name] != before.get(name) and not name.startswith(MAY_CHANGE)]
        if changed:
            raise ConfigError(f"the run in '{self.path}' cannot go on with another {', '.join(changed)}")
        self.write_json("config.json", flat)

    def forget_rounds_after(self, last_round: int) -> None:
        """Drop the lines of metrics.jsonl that are of later rounds: they will be made again."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        complete = [line for line in lines if line.endswith("\n")]
        kept = [line for line in complete if json.loads(line)["server_round"] <= last_round]
        path.write_text("".join(kept), encoding="utf-8")

    @contextmanager
    def recording_errors(self) -> Iterator[None]:
        """Write the sentence of an exception to ``error.txt`` and let the exception go on."""
        try:
            yield
        except Exception as error:
            sentence = str(error) or type(error).__name__
            (self.path / "error.txt").write_text(sentence + "\n", encoding="utf-8")
            raise


def _default_path() -> Path:
    return Path.home() / "hyperlora-runs" / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
