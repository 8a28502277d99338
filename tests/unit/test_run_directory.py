"""One run at a time writes to a run directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyperlora.config.schema import ConfigError
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


def test_unfinished_files_of_an_earlier_run_are_dropped(tmp_path: Path) -> None:
    (tmp_path / ".metrics.tmp").touch()
    with RunDirectory.open(str(tmp_path)).held():
        assert not (tmp_path / ".metrics.tmp").exists()


def test_a_directory_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match="cannot be used"), RunDirectory.open(str(tmp_path)).held():
        pass
