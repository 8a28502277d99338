"""A study: runs in a json file that may be stopped and gone on with, and the options that all studies have."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.result import current_commit, write_json
from hyperlora.cli.settings import parse_override
from hyperlora.config.schema import Scalar

SEEDS = (0, 1, 2)
Seeds = Annotated[list[int] | None, typer.Option(help="development seeds; 0, 1, 2 by default")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for every run")]
Target = Annotated[Path, typer.Option(help="json file; what is in it is not run again")]
Point = Mapping[str, Any]


class Study:
    """The runs of a file; each is told apart by some of its entries, its point.

    Args:
        path: of the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        logging.basicConfig(level=logging.WARNING)
        self._path, self._console = path, Console()
        self.runs: list[Any] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []

    def missing(self, points: Iterable[Point]) -> Iterator[Point]:
        """Yield the points of which there is no run; the run of each is to be added before the next is asked for."""
        for point in points:
            if not any(all(run[key] == value for key, value in point.items()) for run in self.runs):
                began, before = time.perf_counter(), len(self.runs)
                yield point
                if len(self.runs) > before:
                    self.say(f"{', '.join(map(_told, point.items()))}: {time.perf_counter() - began:.0f} s")

    def add(self, point: Point, found: Mapping[str, Any]) -> None:
        """Keep a run, with the commit that made it."""
        self.runs.append({**point, "commit": current_commit(), **found})
        write_json(self._path, {"runs": self.runs})

    def say(self, text: str) -> None:
        """Print a text as it is."""
        self._console.print(text, soft_wrap=True)


def given(override: Sequence[str] | None) -> dict[str, Scalar]:
    """Return the settings of ``--set``."""
    return dict(map(parse_override, override or []))


def _told(entry: tuple[str, Any]) -> str:
    name, value = entry
    return str(value) if isinstance(value, str) else f"{name} {value:g}"
