"""A study goes on from what its file has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.study import Study, given

POINTS = [{"setting": "x", "seed": seed} for seed in (0, 1, 2)]


def test_a_study_that_was_stopped_makes_the_runs_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.json"
    first = Study(path)
    for point in first.missing(POINTS):
        if point["seed"] == 1:
            break
        first.add(point, {"row": 1.0})
    again, made = Study(path), []
    for point in again.missing(POINTS):
        made.append(point["seed"])
        again.add(point, {"row": 2.0})
    assert made == [1, 2]
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert [(run["seed"], run["row"]) for run in runs] == [(0, 1.0), (1, 2.0), (2, 2.0)]
    assert all(run["commit"] for run in runs)
    assert "x, seed 2: 0 s" in capsys.readouterr().out


def test_a_point_whose_run_was_not_kept_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path / "runs.json")
    assert list(study.missing(POINTS[:1])) == POINTS[:1]
    assert "seed 0" not in capsys.readouterr().out
    assert not (tmp_path / "runs.json").exists()


def test_settings_of_the_command_are_read_as_toml() -> None:
    assert given(["a.b=1", 'c="x"']) == {"a.b": 1, "c": "x"}
    assert given(None) == {}
