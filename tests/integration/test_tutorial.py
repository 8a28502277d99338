"""The tutorial's own lines: the folder that they write is personalised to, the model that is exported is loaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperlora.cli.main import app

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def block(name: str) -> str:
    """Return the Python block after the line ``<!-- name -->``."""
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL)
    assert found
    return found[1]


def invoke(*arguments: str) -> None:
    outcome = CliRunner().invoke(app, list(arguments))
    assert outcome.exit_code == 0, outcome.output


def test_the_lines_of_the_tutorial_work_in_their_order(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(short_run, tmp_path / "runs" / "first", ignore=shutil.ignore_patterns("exports", "personal"))
    monkeypatch.chdir(tmp_path)
    exec(block("tutorial-folder"), {})
    invoke("personalize", "runs/first", "my-digits")
    personal = tmp_path / "runs" / "first" / "personal" / "my-digits"
    assert {path.name for path in personal.iterdir()} == {"generated", "after-10-steps", "scores.json"}
    assert json.loads((personal / "scores.json").read_text())["accuracy"][0] > 0.2
    invoke("export", "runs/first", "--merged")
    names: dict[str, object] = {}
    exec(block("tutorial-merged"), names)
    assert getattr(names["model"], "num_classes", None) == 10
    invoke("report", "runs/first")
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 50_000
