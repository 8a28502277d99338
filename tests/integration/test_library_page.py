"""docs/library.md word for word: its two files, in a directory of their own, on Flower's default nodes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hyperlora.cli import flower
from hyperlora.cli.superlink import local_superlink

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "library.md").read_text(encoding="utf-8")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The app as a reader writes it down."""
    for language, name in (("python", "own_app.py"), ("toml", "pyproject.toml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


def test_flower_takes_the_app_as_it_stands(app: Path) -> None:
    from flwr.cli.config_utils import load_and_validate

    config, warnings = load_and_validate(app / "pyproject.toml")
    assert config["tool"]["flwr"]["app"]["publisher"] == "me"
    assert warnings == []


@pytest.mark.slow
def test_the_app_runs_on_flowers_default_nodes_and_says_every_round(app: Path, tmp_path: Path) -> None:
    log = tmp_path / "flower.log"
    with local_superlink(log) as connection:
        run_id = flower.submit(connection, app, {}, None)
        with log.open("ab") as sink, flower.log_stream(connection, run_id, sink) as stream:
            state = flower.follow(connection, run_id, stream, look=lambda: None)
    said = log.read_text(encoding="utf-8", errors="replace")
    assert state.completed, said[-2000:]
    assert [f"round {number}\n" in said for number in range(1, 16)] == [True] * 15
    found = re.search(r"'unseen_zero_step': (0\.\d+).*'unseen_k_step': (0\.\d+)", said)
    assert found
    assert min(float(found[1]), float(found[2])) > 0.5
