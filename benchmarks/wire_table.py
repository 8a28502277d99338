"""What a message of a training round takes and what clients get for it: a table and a figure of accuracy over bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.bootstrap import paired_difference
from benchmarks.figures import GROUPS, PALETTE, save, unmeasured
from benchmarks.table import cell, markdown, scored

Results = Mapping[str, Sequence[Mapping[str, Any]]]
RECEIVED = ("zero_step", "zero_step")


def bytes_table(results: Results, order: Sequence[str], reference: str) -> str:
    """Return a markdown table: KiB of a client in a training round, accuracies as received, differences in points.

    Rows in which nobody sent a message, as a model trained in one place, are left out; empty where none is left.
    """
    names = {group: [group, f"{group}, minus {reference}"] for group in GROUPS}
    rows = {
        name: [*(f"{one:.1f}" for one in kib_of(results[name])), *_accuracies(results, name, reference)]
        for name in with_messages(results, order)
    }
    if not rows:
        return ""
    seeds = sorted({run["seed"] for runs in results.values() for run in runs})
    note = (
        f"Percent as received and points with 95 % intervals (bootstrap over seeds and clients), seeds "
        f"{', '.join(map(str, seeds))}; KiB of the messages of training rounds, a client's mean."
    )
    return markdown("as received", ["KiB down", "KiB up", *names["seen"], *names["unseen"]], rows) + "\n\n" + note


def with_messages(results: Results, order: Sequence[str]) -> list[str]:
    """Return the rows of ``order`` whose runs had messages of training."""
    return [
        name
        for name in order
        if name in results and any("train_down" in one["bytes"] for one in _rounds(results[name]))
    ]


def kib_of(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return KiB that a client gets and sends in a training round."""
    return _kib(runs, "train_down"), _kib(runs, "train_up")


def _kib(runs: Sequence[Mapping[str, Any]], way: str) -> float:
    rounds = _rounds(runs)
    return float(sum(one["bytes"][way] for one in rounds)) / sum(len(one["cohort"]) for one in rounds) / 1024


def _rounds(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for run in runs for one in run["rounds"]]


def _accuracies(results: Results, name: str, reference: str) -> list[str]:
    cells = []
    for group in GROUPS:
        cells.append(cell(_received(results[name], group)))
        apart = paired_difference(results[name], results.get(reference, []), group, RECEIVED)
        cells.append(str(apart or "") if name != reference else "")
    return cells


def _received(runs: Sequence[Mapping[str, Any]], group: str) -> list[float]:
    return [100 * run["rounds"][-1]["evaluation"][group]["zero_step"]["mean"] for run in scored(runs, group)]


def draw_bytes(results: Results, order: Sequence[str], target: Path) -> None:
    """Draw accuracy as received over the KiB of a client's two messages of a round, a color for each method."""
    shown = with_messages(results, order)
    if not shown:
        return save(unmeasured(), target)
    methods = list(dict.fromkeys(name.split(",")[0] for name in shown))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (group, title) in zip(panels, GROUPS.items(), strict=True):
        for name in shown:
            method, _, rest = name.partition(", ")
            at = sum(kib_of(results[name])), mean(_received(results[name], group))
            axes.plot(*at, "o", ms=5, color=PALETTE[methods.index(method)])
            axes.annotate(rest or method, at, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", xlabel="KiB down and up, client and round", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean test accuracy as received (%)")
    for color, method in zip(PALETTE, methods, strict=False):
        panels[1].plot([], [], "o", color=color, label=method)
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    return save(figure, target)
