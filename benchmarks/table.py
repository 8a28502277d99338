"""Tables made from the json files of a suite and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

COLUMNS = {
    "seen, as received": ("seen", "zero_step", "mean"),
    "seen, after K steps": ("seen", "k_step", "mean"),
    "seen, worst tenth": ("seen", "k_step", "worst_tenth"),
    "unseen, as received": ("unseen", "zero_step", "mean"),
    "unseen, after K steps": ("unseen", "k_step", "mean"),
}


def load_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the results of a folder by variant, seeds in order."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(result["variant"], []).append(result)
    return {name: sorted(runs, key=lambda run: run["seed"]) for name, runs in results.items()}


def accuracy_table(results: Mapping[str, Sequence[Mapping[str, Any]]], order: Sequence[str]) -> str:
    """Return a markdown table: accuracy in percent after the last round, mean and standard deviation over seeds."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in order:
        if name in results:
            cells = [_cell([_value(run, path) for run in results[name]]) for path in COLUMNS.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    runs = [run for name in order for run in results.get(name, [])]
    seeds = sorted({run["seed"] for run in runs})
    commits = sorted({run["commit"] for run in runs})
    lines.append(
        f"\nPercent, after the last round; {len(seeds)} seed(s) {', '.join(map(str, seeds))}"
        f"{', mean ± standard deviation' if len(seeds) > 1 else ''}; made at commit {', '.join(commits)}."
    )
    return "\n".join(lines)


def _value(run: Mapping[str, Any], path: tuple[str, str, str]) -> float:
    group, column, figure = path
    return 100 * float(run["rounds"][-1]["evaluation"][group][column][figure])


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
