"""One run at a time writes to a run directory."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hyperlora.cli.output import CommandError
from hyperlora.cli.run import claimed, simulate
from hyperlora.cli.settings import Settings
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.storage.files import private_files
from server_app.run_directory import RunDirectory

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
    stored = {**RunConfig().flat(), "defence.norm": "off", "hyperlora.rehearse": 4}
    for name in ("defence.norm-rule", "hyperlora.probe-clients"):
        del stored[name]
    directory.write_json("config.json", stored)
    with pytest.raises(ConfigError, match=r"cannot go on with another defence\.norm-rule"):
        directory.keep_config(RunConfig.parse({"hyperlora.probe-clients": 4}))
    directory.keep_config(RunConfig.parse_stored(stored))
    assert json.loads((tmp_path / "config.json").read_text())["defence.norm-rule"] == "off"


def test_a_second_command_is_refused_before_it_writes_to_the_log_of_the_first(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(CommandError, match="another run writes to"), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".command.lock"]


def test_a_command_is_refused_in_a_directory_that_holds_a_run_before_it_writes_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    settings = Settings(tmp_path, RunConfig.parse({"run.output-dir": str(tmp_path)}), {})
    with pytest.raises(CommandError, match="already holds a run"):
        simulate(settings, "")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
