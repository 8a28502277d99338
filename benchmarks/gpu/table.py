"""The table of the benchmark, from its json file and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.table import markdown

COLUMNS = ("seconds", "rate", "peak memory", "share of the bfloat16 ceiling", "beside")
PRODUCT, PLAIN = "product, ", "PEFT alone, "


def gpu_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a markdown table, a line for every case; one that failed has its error.

    Args:
        runs: ``runs`` of the json file, each with ``part``, ``case``, ``machine`` and its figures or an ``error``.
    """
    found = {(run["part"], run["case"]): run for run in runs}
    rows = {f"{run['part']}: {run['case']}": _cells(run, found) for run in runs}
    return markdown(", ".join(dict.fromkeys(run["machine"] for run in runs)), COLUMNS, rows)


def _cells(run: Mapping[str, Any], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    if "error" in run:
        return [run["error"].replace("|", "/"), *[""] * (len(COLUMNS) - 1)]
    return [
        f"{run['seconds']:.3g}",
        f"{_short(run['rate'])} {run['unit']}" if "rate" in run else "",
        f"{run['memory'] / 2**30:.2f} GiB" if "memory" in run else "",
        f"{run['share']:.0%}" if "share" in run else "",
        _beside(run, found),
    ]


def _beside(run: Mapping[str, Any], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    if "difference" in run:
        return f"off the server's by {run['difference']:.0e} at most"
    if "server" in run:
        phases = run["phases"]
        told = f"server {phases['aggregating']:.3g} s, {run['server']:.1%} of it; training {phases['training']:.3g} s"
        return f"{told}; first round's replies {run['first']:.3g} s, evaluation {phases['evaluating']:.3g} s"
    plain = found.get((run["part"], run["case"].replace(PRODUCT, PLAIN)), {})
    if run["case"].startswith(PRODUCT) and "seconds" in plain:
        return f"{run['seconds'] / plain['seconds']:.2f} times PEFT alone"
    return ""


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
