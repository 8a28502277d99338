"""What one run of a suite leaves: a json file with everything that tables and figures are made from."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite import Job
from hyperlora.config.renamed import current_names

MACHINE_KEYS = ("data.path", "model.weights")
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
) -> dict[str, Any]:
    """Return the file's content: settings, commit, environment, every round's record and every client's scores.

    ``seconds`` is the wall time of the whole run, ``attackers`` are the ids of clients that were made to attack.
    """
    return {
        "suite": job.suite,
        "variant": job.variant,
        "seed": job.config.seed,
        "commit": current_commit(),
        "seconds": seconds,
        "config": {key: value for key, value in job.config.flat().items() if key not in MACHINE_KEYS},
        "environment": environment,
        "attackers": list(attackers),
        "clients": clients,
        "rounds": rounds,
    }


def is_there(job: Job, target: Path) -> bool:
    """Tell whether ``target`` holds this run: the keys that both configurations have are equal.

    A file of other settings (other overrides, an edited suite) is not this run and will be replaced.
    """
    if not target.exists():
        return False
    there = current_names(json.loads(target.read_text(encoding="utf-8"))["config"])
    flat = job.config.flat()
    return all(
        flat[name] == value
        for name, value in there.items()
        if name in flat and name not in MACHINE_KEYS and not name.startswith(FILES_ONLY)
    )


def load_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the results of a folder by variant, seeds in order."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(result["variant"], []).append(result)
    return {name: sorted(runs, key=lambda run: run["seed"]) for name, runs in results.items()}


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
    partial.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(target)
