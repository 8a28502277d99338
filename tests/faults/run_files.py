"""Damaged files of a run directory: every command reads on or refuses in one sentence, and then changes nothing."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from hyperlora.cli.audit import verify
from hyperlora.cli.export import export
from hyperlora.cli.forget import forget
from hyperlora.cli.output import OutputFormat, reports_errors
from hyperlora.cli.preflight import check_directory
from hyperlora.cli.publish import publish
from hyperlora.cli.report import compare, report
from hyperlora.cli.settings import read_settings
from server_app.run import run
from strategies.engine.strategy import LoraStrategy
from tests.faults.damaged import damage
from tests.faults.mutation import mutate_json
from tests.faults.table import Row

APP = Path(__file__).parents[2]
CLIENT = "rotated-0"
SKIPPED = (".png", ".svg", ".md", ".log", ".lock")
OF_REFUSALS = {"error.txt", "console.log", "audit.jsonl"}
"""What a run writes down of its own refusal."""


def run_files_row(tries: int, directory: Path, finished: Path, seed: int = 0) -> Row:
    """Damage one file of the run in ``finished`` ``tries`` times and let a command at it."""
    shutil.copytree(finished, directory / "other")
    chance, keeper = random.Random(seed), Keeper(finished, directory / "run")
    names, refused, wrong = [*(PAGES_SELDOM * [*COMMANDS]), *PAGES], Counter[str](), ""
    for index in range(tries):
        name = names[index % len(names)]
        what = keeper.damaged(chance)
        outcome = attempt({**COMMANDS, **PAGES}[name], keeper.place)
        refused[name] += outcome == ""
        changed = keeper.changed() if outcome == "" else []
        reason = outcome or (f"refused, and {', '.join(changed)} changed" if changed else "")
        if reason and not wrong:
            wrong = f"{name} with {what}: {reason}"
        keeper.restore()
    told = ", ".join(f"{name} {count}" for name, count in refused.items())
    expected = "read, or refused in one sentence with nothing changed"
    return Row("damaged files of a run directory", expected, wrong or f"refused: {told}", not wrong, tries)


class Keeper:
    """A copy of a run whose files can be damaged and put back.

    Attributes:
        place: the copy.
    """

    def __init__(self, finished: Path, place: Path) -> None:
        self.place = place
        shutil.copytree(finished, place)
        (place / "left_out.json").write_text(json.dumps({"node 7": "it sent no signature within the time limit"}))
        for lock in place.glob(".*lock"):
            lock.unlink()
        self._contents, self._damaged = self._read(), self._read()

    def damaged(self, chance: random.Random) -> str:
        """Damage one file and return its name."""
        names = sorted(name for name in self._contents if not name.endswith(SKIPPED))
        # as often a kind of file as another, however many there are of it
        kind = chance.choice(sorted({Path(name).name for name in names}))
        name = chance.choice([one for one in names if Path(one).name == kind])
        content = self._contents[name]
        parsed = name.endswith((".json", ".jsonl")) and chance.random() < 0.5
        (self.place / name).write_bytes(_mutated(content, chance) if parsed else damage(content, chance))
        self._damaged = {**self._contents, name: (self.place / name).read_bytes()}
        return name

    def changed(self) -> list[str]:
        """Return the files that are not as they were after the damage."""
        found = self._read()
        return [
            name
            for name in sorted({*found, *self._damaged})
            if found.get(name) != self._damaged.get(name) and name not in OF_REFUSALS
        ]

    def restore(self) -> None:
        """Put everything back as it was before the damage."""
        for name in self._read().keys() - self._contents.keys():
            (self.place / name).unlink()
        for name, content in self._contents.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    def _read(self) -> dict[str, bytes]:
        files = (path for path in self.place.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
        return {str(path.relative_to(self.place)): path.read_bytes() for path in files}


def _mutated(content: bytes, chance: random.Random) -> bytes:
    """Return JSON, or lines of it, with an entry changed, dropped or added."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    index = chance.randrange(len(lines))
    value: Any = [json.loads(lines[index])]
    mutate_json(value, chance)
    lines[index] = json.dumps(value[0]) if value else ""
    return ("\n".join(lines) + "\n").encode()


def attempt(command: Callable[[Path], object], place: Path) -> str | None:
    """Return None where a command did its work, nothing where it refused in one sentence, else what is wrong."""
    said, told = io.StringIO(), io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(told):
            command(place)
    except typer.Exit:
        sentence = said.getvalue().strip()
        return "" if sentence and "\n" not in sentence and "Traceback" not in sentence else f"it says: {sentence!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class _ReadError(Exception):
    """All that a run goes on from was read."""


def _go_on(place: Path) -> None:
    """Read what a run is resumed from, as the command and then the server do."""
    settings = read_settings(APP, [], [], {"federation.rounds": 12}, place)
    check_directory(place, settings.config)

    def stop(*given: object, **options: object) -> None:
        raise _ReadError

    try:
        with patch.object(LoraStrategy, "start", stop):
            run(LocalGrid(client_app, settings.values, 2), settings.values)
    except _ReadError:
        pass


COMMANDS: Mapping[str, Callable[[Path], object]] = {
    "resume": reports_errors(_go_on),
    "report --format json": lambda place: report([place], None, None, OutputFormat.JSON),
    "compare": lambda place: compare([place, place.parent / "other"], place / "page.html", OutputFormat.JSON),
    "export": lambda place: export(place, None, False, None, None),
    "export --client": lambda place: export(place, CLIENT, False, None, None),
    "forget": lambda place: forget(place, CLIENT),
    "publish": lambda place: publish(place, None, "other"),
    "audit verify": lambda place: verify(place, None, OutputFormat.TEXT),
}
PAGES: Mapping[str, Callable[[Path], object]] = {"report": lambda place: report([place])}
PAGES_SELDOM = 4
"""A page is drawn once while the other commands are tried so often: it takes ten times as long."""
