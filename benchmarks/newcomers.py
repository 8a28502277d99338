"""The first figure of README: what a client that never trained sends, gets, and is worth, against Fed-SB's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bootstrap import paired_difference
from benchmarks.figures import PALETTE, Results, save, unmeasured
from benchmarks.table import scored

OURS, RIVAL = "hyperlora", "fed-sb"
BARS = (
    (RIVAL, "zero_step", "Fed-SB, as received", "#BBBBBB"),
    (RIVAL, "k_step", "Fed-SB, adapted", "#777777"),
    (OURS, "zero_step", "HyperLoRA, as received", PALETTE[0]),
)
STATIONS = (
    ("newcomer", "its own data stay there"),
    ("signature and\nclass statistics", "some numbers a class"),
    ("server", "generates factors and head"),
    ("PEFT adapter", "no local step"),
)
WIDTH = 0.26


def draw_newcomers(settings: Mapping[str, Results], target: Path) -> None:
    """Draw the newcomer's way, and below it the accuracy of unseen clients in every setting.

    Bars are means over seeds with one standard deviation; above HyperLoRA's stands the difference to Fed-SB's
    adapted clients, paired by client and seed, with its 95 % interval.

    Args:
        settings: name of a setting -> variant -> runs; settings without both methods are left out.
        target: file to write.
    """
    shown = {name: runs for name, runs in settings.items() if OURS in runs and RIVAL in runs}
    if not shown:
        return save(unmeasured(), target)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1, 3))
    _draw_way(above)
    for place, runs in enumerate(shown.values()):
        _draw_bars(below, place, runs)
    lowest = min(mean(_accuracies(runs[RIVAL], "zero_step")) for runs in shown.values())
    begin = max(0, int(lowest - 12))
    label = f"accuracy of unseen clients (%), from {begin}"
    below.set(ylim=(begin, 100), xticks=range(len(shown)), xticklabels=list(shown), ylabel=label)
    below.grid(axis="y", alpha=0.3)
    below.legend(*_legend(below), loc="upper left", ncols=3, frameon=False, fontsize=8)
    return save(figure, target)


def _draw_way(axes: Axes) -> None:
    axes.set(xlim=(-0.5, len(STATIONS) - 0.5), ylim=(-1, 1))
    axes.axis("off")
    for place, (name, said) in enumerate(STATIONS):
        axes.text(
            place, 0.3, name, ha="center", va="center", fontsize=10, bbox={"boxstyle": "round,pad=0.5", "fc": "#E8F1F8"}
        )
        axes.text(place, -0.75, said, ha="center", va="center", fontsize=8, color="#555555")
        if place:
            axes.annotate("", (place - 0.31, 0.3), (place - 0.69, 0.3), arrowprops={"arrowstyle": "->"})


def _draw_bars(axes: Axes, place: int, runs: Results) -> None:
    for shift, (method, column, label, color) in enumerate(BARS):
        values = _accuracies(runs[method], column)
        left = place + (shift - 1) * WIDTH
        error = stdev(values) if len(values) > 1 else 0.0
        axes.bar(left, mean(values), WIDTH, yerr=error, color=color, label=label, ecolor="#333333", capsize=2)
        axes.text(left, mean(values) - 2, f"{mean(values):.1f}", ha="center", va="top", color="white", fontsize=9)
        if method == OURS:
            found = paired_difference(runs[OURS], runs[RIVAL], "unseen", ("zero_step", "k_step"))
            axes.text(left, mean(values) + error + 0.8, str(found).replace(" [", "\n["), ha="center", fontsize=7)


def _accuracies(runs: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    return [100 * run["rounds"][-1]["evaluation"]["unseen"][column]["mean"] for run in scored(runs, "unseen")]


def _legend(axes: Axes) -> tuple[list[Artist], list[str]]:
    """Return one handle and label a kind of bar."""
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    names = [label for _, _, label, _ in BARS]
    return [first[name] for name in names], names
