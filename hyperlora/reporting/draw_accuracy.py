"""Panel: accuracy over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hyperlora.reporting.svg import SERIES, canvas, inline_svg

LABELS = {
    "seen zero_step": ("seen, as received", SERIES[0], "-", "o"),
    "seen k_step": ("seen, after local steps", SERIES[0], "--", "s"),
    "unseen zero_step": ("unseen, as received", SERIES[1], "-", "o"),
    "unseen k_step": ("unseen, after local steps", SERIES[1], "--", "s"),
}
Point = Mapping[str, float]


def draw_accuracy(series: Mapping[str, Sequence[Point]], name: str) -> str:
    """Return the mean over clients by round, with a band of one standard deviation around zero-step accuracy."""
    with canvas(3.5) as (figure, axes):
        for key, (label, color, line, marker) in LABELS.items():
            points = series.get(key, ())
            if points:
                _line(axes, points, label, color, line, marker, band=key.endswith("zero_step"))
        _finish(axes)
        return inline_svg(figure, name, "Mean test accuracy over clients by round")


def draw_accuracies(runs: Mapping[str, Sequence[Point]], name: str) -> str:
    """Return one line for each run, by the run's label."""
    with canvas(3.5) as (figure, axes):
        for index, (label, points) in enumerate(runs.items()):
            style = ("-", "--", ":", "-.")[index // len(SERIES) % 4]
            _line(axes, points, label, SERIES[index % len(SERIES)], style, "o", band=False)
        _finish(axes)
        return inline_svg(figure, name, "Mean test accuracy over clients by round, one line for each run")


def _line(axes: Axes, points: Sequence[Point], label: str, color: str, line: str, marker: str, *, band: bool) -> None:
    rounds = [one["round"] for one in points]
    mean, std = ([100 * one[key] for one in points] for key in ("mean", "std"))
    every = max(1, len(points) // 12)
    axes.plot(rounds, mean, line, marker=marker, markevery=every, ms=4, color=color, label=label)
    if band:
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        axes.fill_between(rounds, low, high, color=color, alpha=0.14, linewidth=0)


def _finish(axes: Axes) -> None:
    axes.set(xlabel="round", ylabel="test accuracy (%)", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.legend(loc="outside upper left", ncols=2)
