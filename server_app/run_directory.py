"""The run directory: everything that a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from protocol.config import ConfigError


@dataclass(frozen=True)
class RunDirectory:
    """An absolute path that exists, with the few ways in which files get there."""

    path: Path

    @classmethod
    def open(cls, output_dir: str) -> RunDirectory:
        """Make the directory; an empty ``output_dir`` makes a new one under ``~/hyperlora-runs``.

        Raises:
            ConfigError: the path is relative, cannot be made, or holds a finished run.
        """
        path = Path(output_dir) if output_dir else _default_path()
        if not path.is_absolute():
            raise ConfigError(f"run.output-dir must be an absolute path, got '{output_dir}'")
        if (path / "metrics.jsonl").exists():
            raise ConfigError(f"run.output-dir '{path}' already holds a run; name a new directory")
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
