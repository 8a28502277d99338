"""Figures of a suite as svg, made from its results and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.table import adapted, scored

Results = Mapping[str, Sequence[Mapping[str, Any]]]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
GROUPS = {"seen": "clients that trained", "unseen": "clients that never trained"}


def draw_steps(results: Results, order: Sequence[str], target: Path) -> None:
    """Draw accuracy over the local steps that a client makes from what it is sent; one panel for seen, one for unseen.

    Lines are means over seeds, bands one standard deviation. At most eight variants are drawn.
    """
    shown = [name for name in order if name in results][: len(PALETTE)]
    if not shown:
        return save(unmeasured(), target)
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (group, title) in zip(panels, GROUPS.items(), strict=True):
        for color, name in zip(PALETTE, shown, strict=False):
            _draw_steps_of(axes, results[name], group, name, color)
        axes.set(xlabel="local steps", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean test accuracy over clients (%)")
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    return save(figure, target)


def _draw_steps_of(axes: Axes, runs: Sequence[Mapping[str, Any]], group: str, name: str, color: str) -> None:
    curves = [run["rounds"][-1]["evaluation"][group]["by_steps"] for run in scored(runs, group)]
    if not curves:
        return
    steps = [int(one) for one in curves[0] if all(one in curve for curve in curves)]
    columns = [[100 * curve[str(one)] for curve in curves] for one in steps]
    middle = [mean(column) for column in columns]
    band = [stdev(column) if len(column) > 1 else 0.0 for column in columns]
    axes.plot(steps, middle, marker="o", ms=3.5, color=color, label=name)
    low, high = ([one + sign * width for one, width in zip(middle, band, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)


def draw_methods(results: Results, order: Sequence[str], target: Path) -> None:
    """Draw every variant's accuracy: seen and unseen, as received (filled) and adapted (open)."""
    shown = [name for name in order if name in results]
    if not shown:
        return save(unmeasured(), target)
    figure = Figure(figsize=(7, 0.32 * len(shown) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(reversed(shown)):
        for shift, (group, color) in zip((0.14, -0.14), (("seen", PALETTE[0]), ("unseen", PALETTE[1])), strict=True):
            runs = scored(results[name], group)
            for column, fill in (("zero_step", color), ("k_step", "none")):
                if not runs:
                    continue
                values = [100 * run["rounds"][-1]["evaluation"][group][column]["mean"] for run in runs]
                error = stdev(values) if len(values) > 1 else 0.0
                label = f"{group}, {'as received' if fill == color else adapted(results)}" if not place else None
                axes.errorbar(
                    mean(values), place + shift, xerr=error, fmt="o", ms=5, mfc=fill, color=color, lw=1, label=label
                )
    axes.set(xlabel="mean test accuracy over clients (%)", yticks=range(len(shown)), yticklabels=reversed(shown))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save(figure, target)


def unmeasured() -> Figure:
    """Return the figure of a suite without results."""
    figure = Figure(figsize=(7, 1.2))
    figure.text(0.5, 0.5, "not measured yet", ha="center", va="center")
    return figure


def save(figure: Figure, target: Path) -> None:
    """Write ``figure`` as svg; the same figure gives the same bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hyperlora"}):
        figure.savefig(target, metadata={"Date": None})
