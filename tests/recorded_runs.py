"""Compare default digits runs of every method with recorded figures: does a change of the code change results?

``python -m tests.recorded_runs`` runs every method with seeds 0 and 1 in this process and compares losses and
accuracies with ``tests/recorded/digits.json.gz``; ``--record`` writes that file anew. The figures are those of one
machine with one thread: another processor may round otherwise, so record there before you change anything.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded" / "digits.json.gz"
TOLERANCE = 1e-5
SEEDS = (0, 1)


def run_figures(method: str, seed: int) -> dict[str, Any]:
    """Make one default run and return its losses by round and accuracies by evaluation and client."""
    from benchmarks.local_grid import LocalGrid
    from client_app.app import app
    from hyperlora.config.schema import RunConfig
    from server_app.run import run

    with tempfile.TemporaryDirectory() as folder:
        values = RunConfig.parse(
            {"method": method, "seed": seed, "run.output-dir": f"{folder}/run", "run.checkpoint-every": 0}
        ).flat()
        directory = run(LocalGrid(app, values, 4, remembers=False), values)
        rounds = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        scores = json.loads((directory / "evaluation.json").read_text())
    return figures_of(rounds, scores)


def figures_of(rounds: list[dict[str, Any]], scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is compared of the lines of metrics.jsonl and the entries of evaluation.json."""
    return {
        "losses": [[one["training"][name]["mean"] for name in ("start_loss", "end_loss")] for one in rounds],
        "evaluations": [
            {group: [found["zero_step"]["mean"], found["k_step"]["mean"], found["zero_step_loss"]["mean"]]
             for group, found in one["evaluation"].items()}
            for one in rounds if one["evaluation"]
        ],
        "clients": {f"{one['client_id']} {one['track']}": [one["zero_step"], one["k_step"]] for one in scores},
    }  # fmt: skip


def largest_difference(left: Any, right: Any) -> float:
    """Return the largest difference of two nested figures; infinite where their shapes differ."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return max((largest_difference(left[name], right[name]) for name in left), default=0.0)
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return max(map(largest_difference, left, right), default=0.0)
    return abs(left - right) if isinstance(left, float) and isinstance(right, float) else float("inf")


def main() -> int:
    """Run the methods that are asked for and print one line for each; return 1 where one differs."""
    from hyperlora.config.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--record", action="store_true", help="write the recorded figures of these methods anew")
    arguments = parser.parse_args()
    recorded = json.loads(gzip.decompress(RECORDED.read_bytes())) if RECORDED.exists() else {}
    worst = 0.0
    for name, method, seed in ((f"{method}-{seed}", method, seed) for method in arguments.methods for seed in SEEDS):
        figures = run_figures(method, seed)
        difference = largest_difference(figures, recorded.get(name))
        print(f"{name}: largest difference {difference:.2g}", flush=True)
        worst = max(worst, difference)
        if arguments.record:
            recorded[name] = figures
            write_recorded(recorded)
    return int(worst > TOLERANCE and not arguments.record)


def write_recorded(figures: dict[str, Any]) -> None:
    """Write the figures of all runs, after each of them, so that a recording that is cut off keeps what it has."""
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_bytes(gzip.compress(json.dumps(figures, sort_keys=True).encode(), mtime=0))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
