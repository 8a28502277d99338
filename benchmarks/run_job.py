"""One run of a suite, in this process, to one json file."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.suite import Job

NODES = 4
MACHINE_KEYS = ("data.path", "model.weights")
NOT_COMPARED = (*MACHINE_KEYS, "run.output-dir")
HERE = Path(__file__).parent


def run_job(job: Job, target: Path) -> float:
    """Run ``job`` through the same ServerApp and ClientApp as Flower would, and return the seconds it took.

    The file holds the configuration, commit, versions, machine, every round's record and every client's scores.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    from benchmarks.local_grid import LocalGrid
    from client_app.app import app
    from server_app.run import run

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hyperlora-benchmark-") as scratch:
        values = {**job.config.flat(), "run.output-dir": str(Path(scratch) / "run")}
        directory = run(LocalGrid(app, values, NODES), values)
        seconds = time.perf_counter() - began
        _write(target, _result(job, directory, seconds))
    return seconds


def is_there(job: Job, target: Path) -> bool:
    """Tell whether ``target`` holds this run: the keys that both configurations have are equal.

    A file of other settings (other overrides, an edited suite) is not this run and will be replaced.
    """
    if not target.exists():
        return False
    there = json.loads(target.read_text(encoding="utf-8"))["config"]
    flat = job.config.flat()
    return all(flat[name] == value for name, value in there.items() if name in flat and name not in NOT_COMPARED)


def _result(job: Job, directory: Path, seconds: float) -> dict[str, Any]:
    rounds = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "suite": job.suite,
        "variant": job.variant,
        "seed": job.config.seed,
        "commit": current_commit(),
        "seconds": seconds,
        "config": {key: value for key, value in job.config.flat().items() if key not in MACHINE_KEYS},
        "environment": json.loads((directory / "environment.json").read_text(encoding="utf-8")),
        "clients": json.loads((directory / "evaluation.json").read_text(encoding="utf-8")),
        "rounds": [json.loads(line) for line in rounds],
    }


def current_commit() -> str:
    """Return the commit of the working tree, with ``+`` where files differ from it."""
    git = ["git", "-C", str(HERE)]
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return (commit.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def _write(target: Path, value: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(target)
