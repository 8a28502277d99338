"""Results of suites: everything that tables and figures are made from.

A run that ends is written to ``results/.runs/SUITE/NAME.json``, whole or not at all. At the end of a suite its runs are
packed into ``results/SUITE.jsonl.xz``, one line per run; a suite that was killed goes on from both.
"""

from __future__ import annotations

import json
import lzma
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.fingerprint import product_fingerprint, product_is_dirty
from benchmarks.suite import Job, split_name
from hyperlora.config.renamed import current_names

Run = Mapping[str, Any]
RUNS = ".runs"
MACHINE_KEYS = ("data.path", "model.weights", "train.embedding-cache-mb", "train.prefix-cache-mb")
"""Where a machine has its files and what it keeps of them; they change no figure."""
FILES_ONLY = "run."
"""Prefix of the keys that say where and how often a run writes, and change no figure."""
HERE = Path(__file__).parent


def job_result(
    job: Job,
    *,
    environment: Mapping[str, Any],
    clients: Sequence[Mapping[str, Any]],
    rounds: Sequence[Mapping[str, Any]],
    seconds: float,
    attackers: Sequence[str] = (),
    adapting: Sequence[Mapping[str, float]] = (),
) -> dict[str, Any]:
    """Return the file's content: settings, commit, environment, every round's record and every client's scores.

    ``seconds`` is the wall time of the whole run, ``attackers`` are the ids of clients that were made to attack,
    ``adapting`` what budgets of use are worth (:mod:`benchmarks.adapting`).
    """
    return {
        "suite": job.suite,
        "variant": job.variant,
        "seed": job.config.seed,
        "commit": current_commit(),
        "fingerprint": product_fingerprint(),
        "dirty": product_is_dirty(),
        "seconds": seconds,
        "config": {key: value for key, value in job.config.flat().items() if key not in MACHINE_KEYS},
        "environment": environment,
        "attackers": list(attackers),
        "clients": clients,
        "rounds": rounds,
        **({"adapting": list(adapting)} if adapting else {}),
    }


def run_file(results: Path, job: Job) -> Path:
    """Return where a run of a suite is written when it ends."""
    return results / RUNS / job.suite / f"{job.name}.json"


def packed_file(results: Path, suite: str) -> Path:
    """Return the file with all packed runs of a suite and its settings."""
    return results / f"{split_name(suite)[0]}.jsonl.xz"


def read_runs(results: Path, suite: str) -> dict[str, Run]:
    """Return the runs of a suite and its settings by name; where a run was repeated, the one not packed yet."""
    runs = {_name(run): run for run in map(json.loads, _packed_text(results, suite).splitlines())}
    for path in _unpacked(results, suite):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs[_name(run)] = run
    return runs


def load_results(results: Path, suite: str) -> dict[str, list[Run]]:
    """Return the runs of a suite without settings, or of one setting, by variant; seeds in order."""
    return load_settings(results, suite).get(suite, {})


def load_settings(results: Path, suite: str) -> dict[str, dict[str, list[Run]]]:
    """Return the runs of every setting of a suite by variant; seeds in order."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(read_runs(results, suite).values(), key=lambda run: int(run["seed"])):
        found.setdefault(run["suite"], {}).setdefault(run["variant"], []).append(run)
    return found


def pack_runs(results: Path, suite: str) -> None:
    """Move the finished runs of a suite and its settings into its packed file; equal runs give equal bytes."""
    (results / RUNS).mkdir(parents=True, exist_ok=True)
    with FileLock(results / RUNS / f"{split_name(suite)[0]}.lock"):
        done = _unpacked(results, suite)
        runs = read_runs(results, suite)
        text = "".join(_line(runs[name]) for name in sorted(runs))
        if text != _packed_text(results, suite):
            partial = packed_file(results, suite).with_suffix(".partial")
            partial.write_bytes(lzma.compress(text.encode()))
            partial.replace(packed_file(results, suite))
        for path in done:
            path.unlink()


def is_run(run: Run | None, job: Job) -> bool:
    """Tell whether ``run`` is the result of ``job``: the keys that both configurations have are equal.

    A result of other settings (other overrides, an edited suite) is not, and will be replaced.
    """
    if run is None or (job.adapting and "adapting" not in run):
        return False
    flat = job.config.flat()
    return all(
        flat[name] == value
        for name, value in current_names(run["config"]).items()
        if name in flat and name not in MACHINE_KEYS and not name.startswith(FILES_ONLY)
    )


def missing_jobs(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Return the jobs of a suite that have no result yet."""
    runs = read_runs(results, jobs[0].suite) if jobs else {}
    return [job for job in jobs if not is_run(runs.get(f"{job.suite}/{job.variant}/{job.config.seed}"), job)]


def _name(run: Run) -> str:
    return f"{run['suite']}/{run['variant']}/{run['seed']}"


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _packed_text(results: Path, suite: str) -> str:
    path = packed_file(results, suite)
    return lzma.decompress(path.read_bytes()).decode() if path.exists() else ""


def _unpacked(results: Path, suite: str) -> list[Path]:
    return sorted((results / RUNS / split_name(suite)[0]).rglob("*.json"))


def gpus_of(run: Run) -> list[str]:
    """Return the names of the GPUs of the machine that a run was made on."""
    return list(run.get("environment", {}).get("machine", {}).get("gpus", []))


def current_commit() -> str:
    """Return the commit of the working tree, with ``+`` where files differ from it."""
    git = ["git", "-C", str(HERE)]
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return (commit.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def write_json(target: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` so that the file is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(_line(value), encoding="utf-8")
    partial.replace(target)
