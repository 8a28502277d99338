"""One run at a time writes to a run directory."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.reporting.run_files import RunFilesError, read_records
from hyperlora.storage.files import private_files
from server_app.run_directory import RunDirectory

RECORDS = "".join(f'{{"server_round": {number}}}\n' for number in (1, 2, 3))
HOLDER = """
import sys, time
from server_app.run_directory import RunDirectory
with RunDirectory.open(sys.argv[1]).held():
    print(flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_of_the_first_and_takes_over_when_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as first:
        assert first.stdout
        first.stdout.readline()
        second = RunDirectory.open(str(tmp_path))
        with pytest.raises(ConfigError, match="another run writes to"), second.held(patience=0.1):
            pass
        first.kill()
    with second.held(patience=0.1):
        second.write_json("a.json", 1)
    with second.held(patience=0.1):
        assert (tmp_path / "a.json").exists()


def test_a_second_run_that_waited_for_the_first_does_not_go_on_in_its_directory(tmp_path: Path) -> None:
    second = RunDirectory.open(str(tmp_path))
    with RunDirectory.open(str(tmp_path)).held():
        (tmp_path / "metrics.jsonl").touch()
        (tmp_path / ".half.tmp").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="already holds a run"), second.held(), second.recording_errors():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_run_that_is_refused_writes_nothing_to_the_directory(tmp_path: Path) -> None:
    directory = RunDirectory.open(str(tmp_path))
    with directory.held():
        before = sorted(path.name for path in tmp_path.iterdir())
        second = RunDirectory.open(str(tmp_path))
        with pytest.raises(ConfigError), second.held(patience=0.1), second.recording_errors():
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_run_directory_and_its_files_are_their_owners_alone(tmp_path: Path) -> None:
    directory = RunDirectory.open(str(tmp_path / "run"))
    directory.write_json("clients.json", {})
    directory.append_json("metrics.jsonl", {})
    with private_files():
        (directory.path / "adapters").mkdir()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [directory.path, *directory.path.iterdir()]}
    assert modes == {"run": 0o700, "clients.json": 0o600, "metrics.jsonl": 0o600, "adapters": 0o700}


def test_unfinished_files_of_an_earlier_run_are_dropped(tmp_path: Path) -> None:
    (tmp_path / ".metrics.tmp").touch()
    with RunDirectory.open(str(tmp_path)).held():
        assert not (tmp_path / ".metrics.tmp").exists()


def test_a_directory_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match="cannot be used"), RunDirectory.open(str(tmp_path)).held():
        pass


def test_an_old_run_goes_on_with_the_keys_it_was_made_with_under_their_new_names(tmp_path: Path) -> None:
    directory = RunDirectory.open(str(tmp_path))
    stored = {**RunConfig().flat(), "defence.norm": "reject", "hyperlora.rehearse": 4}
    for name in ("defence.norm-rule", "hyperlora.probe-clients"):
        del stored[name]
    directory.write_json("config.json", stored)
    with pytest.raises(ConfigError, match=r"cannot go on with another defence\.norm-rule"):
        directory.keep_config(RunConfig.parse({"hyperlora.probe-clients": 4}))
    directory.keep_config(RunConfig.parse_stored(stored))
    assert json.loads((tmp_path / "config.json").read_text())["defence.norm-rule"] == "reject"


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_finished_run_is_not_touched_by_a_resume_that_has_nothing_to_do(tmp_path: Path, rounds: int) -> None:
    for name, text in (("config.json", "{}"), ("evaluation.json", "[]"), ("metrics.jsonl", RECORDS)):
        (tmp_path / name).write_text(text)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigError, match=f"3 rounds of the run in .* are made and federation.rounds is {rounds}"):
        RunDirectory.open(str(tmp_path), resume=True, rounds=rounds)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert RunDirectory.open(str(tmp_path), resume=True, rounds=4).path == tmp_path


def test_settings_that_cannot_be_read_are_one_sentence_and_stay(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{\xff")
    with pytest.raises(ConfigError, match=r"config\.json' cannot be read .* so the run cannot go on"):
        RunDirectory(tmp_path, resume=True).keep_config(RunConfig())
    assert (tmp_path / "config.json").read_bytes() == b"{\xff"


@pytest.mark.parametrize("missing", ["mean", "k_step", "clients"])
def test_a_round_without_a_figure_that_a_report_needs_is_refused_by_its_line(tmp_path: Path, missing: str) -> None:
    spread = {"mean": 0.5, "std": 0.1, "worst_tenth": 0.2}
    record = {"server_round": 1, "evaluation": {"seen": {"clients": 2, "zero_step": spread, "k_step": spread}}}
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert read_records(path)[0]["evaluation"] == record["evaluation"]
    path.write_text(json.dumps(record).replace(f'"{missing}"', '"mutated"') + "\n")
    with pytest.raises(RunFilesError, match=f"line 1 holds no round .evaluation.seen.*{missing}"):
        read_records(path)
