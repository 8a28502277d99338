"""The notebook in docs/examples: its cells run one after the other, in an empty directory, without a network."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hyperlora.cli.main import app

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "newcomer.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> None:
    """Run a cell of Python, or one that is a command of the shell, as Jupyter does."""
    if not source.startswith("!hyperlora "):
        exec(compile(source, str(NOTEBOOK), "exec"), names)
        return
    outcome = CliRunner().invoke(app, shlex.split(source)[1:])
    assert outcome.exit_code == 0, outcome.output


def test_the_notebook_runs_offline_and_reads_the_newcomer_s_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {}
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for cell in (one for one in cells if one["cell_type"] == "code"):
        assert cell["outputs"] == []
        run_cell("".join(cell["source"]), names)
    right = int((names["said"] == names["labels"]).sum())
    assert right / len(names["labels"]) > 0.5
    assert f"{right} of {len(names['labels'])} right" in capsys.readouterr().out
    assert names["bars"]["generated, 0 local steps"] == names["scores"]["accuracy"][0]
