"""Every process of a run is ended, whoever its parent is by then; nobody else's is."""

import os
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from hyperlora.cli.processes import MARKER, end_marked, interruptible, marked_processes
from hyperlora.cli.superlink import simulation_size

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(0, flush=True); " + SLEEP


@pytest.fixture
def mark():
    mark = uuid.uuid4().hex
    yield mark
    end_marked(mark, patience=0)


def start(mark, code, **options):
    """Start Python code that bears the mark and return it with the number it prints first."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARKER: mark}, stdout=subprocess.PIPE, **options
    )
    assert process.stdout
    return process, int(process.stdout.readline())


def orphan_of(child_environment):
    """Return code whose process starts a child, prints its pid and ends: the child loses its parent."""
    return (
        "import subprocess, sys; p = subprocess.Popen("
        f"[sys.executable, '-c', {SLEEP!r}], env={child_environment}, stdout=subprocess.DEVNULL); "
        "print(p.pid, flush=True)"
    )


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_reparented_grandchild_is_ended(mark):
    parent, pid = start(mark, orphan_of("None"))
    parent.wait()
    assert psutil.Process(pid).ppid() != parent.pid
    end_marked(mark)
    assert gone(pid)


def test_a_child_without_the_mark_is_ended_with_its_parent(mark):
    _, pid = start(mark, orphan_of("{}") + "; " + SLEEP)
    end_marked(mark)
    assert gone(pid)


def test_an_orphan_without_the_mark_is_found_in_the_session(mark):
    leader = "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]])\n" + SLEEP
    process = subprocess.Popen(
        [sys.executable, "-c", leader, orphan_of("{}")],
        env={**os.environ, MARKER: mark},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    pid = int(process.stdout.readline())
    deadline = time.monotonic() + 10
    while len(marked_processes(mark)) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    end_marked(mark)
    assert gone(pid)


def test_what_ignores_sigterm_is_killed_and_reaped(mark):
    process, _ = start(mark, STUBBORN)
    end_marked(mark, patience=0.3)
    assert not psutil.pid_exists(process.pid)


def test_another_mark_is_left_alone(mark):
    other = uuid.uuid4().hex
    process, _ = start(other, "print(0, flush=True); " + SLEEP)
    end_marked(mark)
    assert process.poll() is None
    end_marked(other)
    assert gone(process.pid)


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_simulation_has_the_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert simulation_size(4, 1, 0).endswith("init-args-num-cpus=3")
