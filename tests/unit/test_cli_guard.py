"""A run's processes end with the command that started them, even if that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from hyperlora.cli.processes import MARKER, end_marked, guarded

COMMAND = f"""
import os, subprocess, sys, time
from pathlib import Path
from hyperlora.cli.processes import guarded
mark, home = sys.argv[1:]
with guarded(mark, Path(home)):
    child = subprocess.Popen(["sleep", "60"], env={{**os.environ, {MARKER!r}: mark}}, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(60)
"""


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_command_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    mark, home = uuid.uuid4().hex, tmp_path / "home"
    home.mkdir()
    with subprocess.Popen([sys.executable, "-c", COMMAND, mark, str(home)], stdout=subprocess.PIPE) as command:
        assert command.stdout
        child = int(command.stdout.readline())
        assert lives(child)
        command.kill()
    deadline = time.monotonic() + 20
    while (lives(child) or home.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(child)
    assert not home.exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_command_that_tidies_up_itself_is_left_to_it(tmp_path: Path, fails: bool) -> None:
    mark = uuid.uuid4().hex
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, MARKER: mark})
    with pytest.raises(ValueError, match="on purpose") if fails else nullcontext(), guarded(mark, tmp_path):
        if fails:
            raise ValueError("on purpose")
    assert child.poll() is None
    assert tmp_path.exists()
    end_marked(mark)
    assert not lives(child.pid)
