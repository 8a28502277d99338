"""The figure of a run: accuracy over rounds, as png and svg."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"seen": "#0072B2", "unseen": "#D55E00"}
STYLES = {"zero_step": ("-", "o", "as received"), "k_step": ("--", "s", "after local steps")}


def draw_accuracy(metrics: Path, target: Path) -> None:
    """Draw the mean test accuracy of seen and unseen clients over rounds from a metrics.jsonl.

    Args:
        metrics: the file of round records.
        target: path without suffix; ``.png`` and ``.svg`` are written.
    """
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    evaluated = [record for record in records if record["evaluation"]]
    if not evaluated:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for group in COLORS:
        for column in STYLES:
            _draw_line(axes, evaluated, group, column)
    axes.set(xlabel="round", ylabel="mean test accuracy over clients (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    for suffix in (".png", ".svg"):
        figure.savefig(target.with_suffix(suffix), dpi=150)


def _draw_line(axes: Axes, records: list[dict[str, Any]], group: str, column: str) -> None:
    points = [
        (one["server_round"], 100 * one["evaluation"][group][column]["mean"])
        for one in records
        if group in one["evaluation"]
    ]
    if points:
        line, marker, label = STYLES[column]
        axes.plot(
            *zip(*points, strict=True),
            line,
            marker=marker,
            ms=4,
            color=COLORS[group],
            label=f"{group}, {label}",
        )
