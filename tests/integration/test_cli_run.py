"""`hyperlora run` with real simulations of a trivial app, side by side: exit status, words, nothing left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TEST_MARK = "HYPERLORA_TEST"

PROJECT = """
[project]
name = "trivial"
version = "0.1.0"
description = "A server that writes lines."
license = { file = "LICENSE" }
dependencies = ["flwr[simulation]>=1.41.0"]
[tool.flwr.app]
publisher = "test"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["trivial/*.py", "LICENSE"]
[tool.flwr.app.components]
serverapp = "trivial.server:app"
clientapp = "trivial.client:app"
[tool.flwr.app.config]
seed = 0
run.output-dir = ""
"""
CLIENT = "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
SERVER = """
import time
from pathlib import Path
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    folder = Path(context.run_config["run.output-dir"])
    (folder / "console.log").write_text("begun [bold]\\nround 1\\n")
    if context.run_config["seed"] == 1:
        (folder / "error.txt").write_text("the sky is too low\\n")
        raise ValueError("low")
    if context.run_config["seed"] >= 2:
        time.sleep(300)
"""
FAILS, SLEEPS, KILLED = 1, 2, 3


@pytest.fixture(scope="module")
def mark():
    """A value that every process of this module's runs inherits."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, mark):
    """Run the app three times at once, interrupt one that sleeps, kill the other, return (status, out, err) of each."""
    folder = tmp_path_factory.mktemp("cli")
    write_app(folder)
    runs = {seed: start(folder, mark, seed) for seed in (FAILS, SLEEPS, KILLED)}
    try:
        wait_for(folder / f"run {SLEEPS}" / "console.log", runs[SLEEPS])
        runs[SLEEPS].send_signal(signal.SIGINT)
        wait_for(folder / f"run {KILLED}" / "console.log", runs[KILLED])
        runs[KILLED].kill()
        outputs = {seed: run.communicate(timeout=180) for seed, run in runs.items()}
    finally:
        for run in runs.values():
            run.terminate()
    return {seed: (runs[seed].returncode, *outputs[seed]) for seed in runs}


def write_app(folder):
    files = {"pyproject.toml": PROJECT, "LICENSE": "none\n"}
    files |= {f"trivial/{name}": text for name, text in [("__init__.py", ""), ("client.py", CLIENT)]}
    for name, text in {**files, "trivial/server.py": SERVER}.items():
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def start(folder, mark, seed):
    command = [sys.executable, "-m", "hyperlora.cli.main", "run", "app", "--seed", str(seed), "--supernodes", "1"]
    environment = {**os.environ, TEST_MARK: mark, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(
        [*command, "--output-dir", f"run {seed}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )


def hears_ctrl_c():
    """Undo what a shell without job control sets for its background jobs, so that these tests may run in one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)


def bears(process, mark):
    try:
        return process.environ().get(TEST_MARK) == mark
    except (psutil.Error, OSError):
        return False


def test_a_run_that_fails_shows_its_lines_says_why_and_ends_with_1(outcomes):
    status, out, err = outcomes[FAILS]
    assert status == 1
    assert err.startswith("the sky is too low (log: /")
    assert err.count("\n") == 1
    assert out.startswith("begun [bold]\nround 1\n")
    assert "Traceback" not in out
    log = Path(err.partition("(log: ")[2].strip().removesuffix(")"))
    assert "ValueError: low" in log.read_text()


def test_ctrl_c_says_where_the_results_lie_and_ends_with_130(outcomes):
    status, _, err = outcomes[SLEEPS]
    assert status == 130
    assert err.startswith("stopped; the results so far lie in /")
    assert err.endswith("run 2\n")


def test_no_process_is_left_not_even_by_the_command_that_was_killed(outcomes, mark):
    assert outcomes[KILLED][0] == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while (left := [process for process in psutil.process_iter() if bears(process, mark)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)
    assert left == []
