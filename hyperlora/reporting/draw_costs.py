"""Panels: bytes and seconds of every round, by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from hyperlora.reporting.svg import SERIES, canvas, inline_svg

BYTES = {
    "train_down": "training, down",
    "train_up": "training, up",
    "evaluate_down": "evaluation, down",
    "evaluate_up": "evaluation, up",
    "rehearse_down": "rehearsal, down",
    "rehearse_up": "rehearsal, up",
}
SECONDS = {
    "waiting": "waiting for clients",
    "aggregating": "server work",
    "evaluating": "evaluation",
    "rehearsing": "rehearsal",
}
MIB = 2**20


def draw_bytes(records: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return stacked bars of MiB by round."""
    return _bars(records, name, "bytes", BYTES, 1 / MIB, "MiB in a round")


def draw_seconds(records: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return stacked bars of wall seconds by round."""
    return _bars(records, name, "seconds", SECONDS, 1.0, "seconds of a round")


def _bars(
    records: Sequence[Mapping[str, Any]], name: str, key: str, phases: Mapping[str, str], scale: float, label: str
) -> str:
    rounds = [one["server_round"] for one in records]
    with canvas(3.2) as (figure, axes):
        base = [0.0] * len(records)
        for color, (phase, text) in zip(SERIES, phases.items(), strict=False):
            heights = [scale * one[key].get(phase, 0.0) for one in records]
            if any(heights):
                axes.bar(rounds, heights, bottom=base, width=0.8, color=color, label=text)
                base = [low + high for low, high in zip(base, heights, strict=True)]
        axes.set(xlabel="round", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=2)
        return inline_svg(figure, name, f"{label}, by phase")
