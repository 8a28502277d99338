"""The figures of a report, each as inline SVG, and the figure of accuracy that every run directory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.figures import GROUPS, MIB, STEPS, accuracy_over_rounds
from hyperlora.reporting.run_files import read_records
from hyperlora.reporting.signature_map import SignatureMap
from hyperlora.reporting.svg import FAINT, INK, MARKERS, SERIES, SMALLEST_TEXT, canvas, inline_svg, plain, tip
from hyperlora.reporting.verdict import gain_interval

FADE = LinearSegmentedColormap.from_list("fade", [(0.12, 0.52, 0.82, 0.0), (0.12, 0.52, 0.82, 1.0)])
MOST_NAMED = {"x": 12, "y": 20}
SMALLEST = 1e-9
MOST_TICKS = 8
FILE_COLORS = ("#0072B2", "#D55E00")
PHASES = {
    "bytes": {
        "train_down": "training, down",
        "train_up": "training, up",
        "evaluate_down": "evaluation, down",
        "evaluate_up": "evaluation, up",
        "probe_down": "probing, down",
        "probe_up": "probing, up",
        "sums_down": "sums, down",
        "sums_up": "sums, up",
    },
    "seconds": {
        "waiting": "waiting for clients",
        "aggregating": "server work",
        "evaluating": "evaluation",
        "probing": "probing",
    },
}
Point = Mapping[str, float]


def draw_accuracy(series: Mapping[str, Sequence[Point]], name: str) -> str:
    """Return the mean over clients by round, with a band of one standard deviation around zero-step accuracy."""
    with canvas(3.5) as (figure, axes):
        _accuracy_lines(axes, series, SERIES)
        return inline_svg(figure, name, "Mean test accuracy over clients by round")


def save_accuracy(metrics: Path, target: Path) -> None:
    """Draw the same figure for a run directory; nothing is written where no round was evaluated.

    Args:
        metrics: the file of round records.
        target: path without suffix; ``.png`` and ``.svg`` are written.
    """
    series = accuracy_over_rounds(read_records(metrics))
    if not series:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    _accuracy_lines(axes, series, FILE_COLORS)
    axes.grid(alpha=0.3)
    for suffix in (".png", ".svg"):
        figure.savefig(target.with_suffix(suffix), dpi=150)


def draw_accuracies(runs: Mapping[str, Sequence[Point]], name: str) -> str:
    """Return one line for each run, by the run's label."""
    with canvas(3.5) as (figure, axes):
        for index, (label, points) in enumerate(runs.items()):
            style = ("-", "--", ":", "-.")[index // len(SERIES) % 4]
            _line(axes, points, plain(label), SERIES[index % len(SERIES)], style, "o", band=False)
        _label_accuracy(axes)
        return inline_svg(figure, name, "Mean test accuracy over clients by round, one line for each run")


def _accuracy_lines(axes: Axes, series: Mapping[str, Sequence[Point]], colors: Sequence[str]) -> None:
    for group, color in zip(GROUPS, colors, strict=False):
        for (column, words), style, marker in zip(STEPS.items(), ("-", "--"), "os", strict=True):
            if points := series.get(f"{group} {column}"):
                _line(axes, points, f"{group}, {words}", color, style, marker, band=column == "zero_step")
    _label_accuracy(axes)


def _line(axes: Axes, points: Sequence[Point], label: str, color: str, line: str, marker: str, *, band: bool) -> None:
    rounds = [point["round"] for point in points]
    mean, std = (100 * np.array([point[key] for point in points]) for key in ("mean", "std"))
    every = max(1, len(points) // 12)
    axes.plot(rounds, mean, line, marker=marker, markevery=every, ms=4, color=color, label=label)
    if band:
        axes.fill_between(rounds, mean - std, mean + std, color=color, alpha=0.14, linewidth=0)


def _label_accuracy(axes: Axes) -> None:
    axes.set(xlabel="round", ylabel="test accuracy (%)", ylim=_fitting(axes))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _whole_rounds(axes, [round_ for line in axes.lines for round_ in np.asarray(line.get_xdata()).tolist()])
    axes.figure.legend(loc="outside upper left", ncols=2, frameon=False)


def _fitting(axes: Axes) -> tuple[float, float]:
    """Return the bounds, in whole tens of percent, between which all lines of mean accuracy lie."""
    heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    return max(0.0, 10 * np.floor(heights.min() / 10 - 0.5)), min(100.0, 10 * np.ceil(heights.max() / 10 + 0.5))


def _whole_rounds(axes: Axes, rounds: Sequence[float]) -> None:
    """Put ticks where there are points, at most ``MOST_TICKS`` of them, the last one among them."""
    places = sorted(set(rounds))
    axes.set_xticks(places[:: -max(1, -(-len(places) // MOST_TICKS))])


def draw_gain(gain: Mapping[str, float], rows: Mapping[str, str], unseen: Sequence[str], name: str, over: str) -> str:
    """Return what every client gains over a baseline: a strip of points for each row.

    Args:
        gain: client-id -> accuracy gained, a share.
        rows: client-id -> the row it stands in (its domain, or its run).
        unseen: clients that never train: drawn hollow.
        name: prefix of ids.
        over: what the gain is over, for the axis.
    """
    groups, tips = list(dict.fromkeys(rows[client] for client in gain)), list[str]()
    with canvas(1.5 + 0.42 * len(groups)) as (figure, axes):
        axes.axvline(0, color=INK, lw=1)
        for height, group in enumerate(groups):
            members = [client for client in gain if rows[client] == group]
            offsets = np.linspace(-0.25, 0.25, len(members)) if len(members) > 1 else [0.0]
            for client, offset in zip(members, offsets, strict=True):
                color, fill = (SERIES[1], "none") if client in unseen else (SERIES[0], SERIES[0])
                place = (100 * gain[client], height + offset)
                axes.plot(*place, "o", ms=5, color=color, mfc=fill, gid=tip(len(tips)))
                tips.append(f"{client}: {100 * gain[client]:+.1f}")
            _mean_with_interval(axes, [gain[client] for client in members], height)
        axes.set_yticks(range(len(groups)), [plain(group) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel(f"gain over {plain(over)} (percentage points)")
        axes.plot([], [], "o", ms=5, color=SERIES[0], label="seen")
        axes.plot([], [], "o", ms=5, color=SERIES[1], mfc="none", label="unseen")
        axes.plot([], [], color=INK, lw=2, label="mean, 95 %")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_color(FAINT)
        figure.legend(loc="outside upper left", ncols=3)
        return inline_svg(figure, name, f"Gain of each client over {over}", tips)


def _mean_with_interval(axes: Axes, values: Sequence[float], height: float) -> None:
    """Mark the mean across a strip, and below its points the interval of the mean over clients, if there are some."""
    mean = 100 * sum(values) / len(values)
    axes.plot([mean, mean], [height - 0.3, height + 0.38], color=INK, lw=2)
    if len(values) > 1:
        axes.plot([100 * bound for bound in gain_interval(values)], [height + 0.38] * 2, color=INK, lw=2)


def draw_signatures(cards: Sequence[ClientCard], name: str) -> str:
    """Return the clients in the plane, a colour and a marker for each domain, unseen ones hollow."""
    signature_map = SignatureMap.of(cards)
    points, shares = signature_map.places([card.signature for card in cards]), signature_map.shares
    domains = sorted({card.domain for card in cards})
    with canvas(3.8) as (figure, axes):
        for index, domain in enumerate(domains):
            color, marker = SERIES[index % len(SERIES)], MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
            for row, card in enumerate(cards):
                if card.domain == domain:
                    fill = color if card.trains else "none"
                    axes.plot(*points[row], marker, ms=6.5, color=color, mfc=fill, mew=1.5, gid=tip(row))
            axes.plot([], [], marker, color=color, label=plain(domain))
        axes.set_xlabel(f"first direction ({100 * shares[0]:.0f} % of the variance)")
        axes.set_ylabel(f"second direction ({100 * shares[1]:.0f} %)")
        axes.margins(0.08)
        figure.legend(loc="outside upper left", ncols=min(4, len(domains)), columnspacing=1.0, handletextpad=0.2)
        named = [card.client_id for card in cards]
        return inline_svg(figure, name, "Map of the clients' signatures by domain", named)


def draw_attention(
    weights: Tensor, rows: Sequence[str], columns: Sequence[str], domains: Mapping[str, str], name: str
) -> str:
    """Return the heat map of the synthesizer's attention; rows and columns stand by domain, then by client-id.

    Args:
        weights: (rows, columns).
        rows: client-ids that receive.
        columns: client-ids of the memory.
        domains: client-id -> domain.
        name: prefix of ids.
    """
    down, across = (sorted(names, key=lambda name: (domains.get(name, ""), name)) for names in (rows, columns))
    table = weights[[rows.index(client) for client in down]][:, [columns.index(client) for client in across]]
    with canvas(4.3) as (figure, axes):
        image = axes.imshow(table.numpy(), cmap=FADE, vmin=0, aspect="auto", interpolation="nearest")
        _label_clients(axes, "y", down, domains)
        _label_clients(axes, "x", across, domains)
        axes.set(xlabel="attends to the deviation of", ylabel="client that receives")
        axes.grid(visible=False)
        axes.spines[["top", "right"]].set_visible(True)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=24)
        bar.set_label("attention weight")
        bar.outline.set_edgecolor(FAINT)
        return inline_svg(figure, name, "Attention of the synthesizer between clients")


def _label_clients(axes: Axes, axis: str, names: Sequence[str], domains: Mapping[str, str]) -> None:
    """Name every client where there is room, else every domain; a line parts the domains."""
    line, ticks = (axes.axhline, axes.set_yticks) if axis == "y" else (axes.axvline, axes.set_xticks)
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(domains.get(name, ""), []).append(index)
    for places in list(groups.values())[1:]:
        line(places[0] - 0.5, color=FAINT, lw=0.8)
    rotation = 90 if axis == "x" else 0
    if len(names) <= MOST_NAMED[axis]:
        ticks(range(len(names)), [plain(name) for name in names], rotation=rotation, fontsize=SMALLEST_TEXT)
    else:
        ticks(
            [sum(places) / len(places) for places in groups.values()],
            [plain(group) for group in groups],
            rotation=rotation,
            fontsize=SMALLEST_TEXT,
        )


def draw_spectra(anchor: Mapping[str, Tensor], residual: Mapping[str, Tensor], name: str) -> str:
    """Return singular values, a line for each module kind: the anchor's, then those of the residual, dashed."""
    with canvas(3.5) as (figure, axes):
        rank = 0
        for index, (kind, kept) in enumerate(anchor.items()):
            color, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            rank = kept.numel()
            axes.plot(range(1, rank + 1), kept.tolist(), marker=marker, ms=5, color=color, label=kind)
            rest = [value for value in residual[kind].tolist() if value > SMALLEST] if kind in residual else []
            if rest:
                places = range(rank + 1, rank + 1 + len(rest))
                axes.plot(places, rest, "--", marker=marker, ms=5, color=color, mfc="none")
        if residual:
            axes.axvline(rank + 0.5, color=FAINT, lw=1)
            axes.plot([], [], "--", color=INK, label="residual")
        axes.set(xlabel="number of the singular value", ylabel="singular value of dW", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=3)
        return inline_svg(figure, name, "Singular values of the anchor and of what the corrector carries")


def draw_phases(records: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return stacked bars by round, by phase: MiB where ``key`` is ``bytes``, wall time where it is ``seconds``."""
    scale, label = (1 / MIB, "MiB in a round") if key == "bytes" else (1.0, "seconds of a round")
    rounds = [record["server_round"] for record in records]
    with canvas(3.2) as (figure, axes):
        base = np.zeros(len(records))
        for color, (phase, text) in zip(cycle(SERIES), PHASES[key].items(), strict=False):
            heights = scale * np.array([record[key].get(phase, 0.0) for record in records])
            if heights.any():
                axes.bar(rounds, heights, bottom=base, width=0.8, color=color, label=text)
                base = base + heights
        axes.set(xlabel="round", ylabel=label)
        _whole_rounds(axes, rounds)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=2)
        return inline_svg(figure, key, f"{label}, by phase")
