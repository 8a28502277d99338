"""Figures of the benchmarks that keep curves, drawn from what they measured and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.perf.measure import Comparison


def draw_series(comparisons: Sequence[Comparison], target: Path) -> None:
    """Draw one panel for each comparison with curves, over rounds, from zero; nothing where there are none."""
    shown = [one for one in comparisons if one.series]
    if not shown:
        return
    figure = Figure(figsize=(4.5 * len(shown), 3.5), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for name, values in one.series.items():
            axes.plot(range(1, len(values) + 1), values, label=name)
        axes.set(xlabel="round", ylabel=one.unit)
        axes.set_ylim(bottom=0)
        axes.set_title(one.case, fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
