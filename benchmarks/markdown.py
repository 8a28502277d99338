"""Markdown tables and their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev


def markdown(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a markdown table with ``corner`` over the names of the rows."""
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines)


def cell(values: Sequence[float], sign: str = "") -> str:
    """Return the mean, with the standard deviation where there are several values; ``sign`` is a format sign.

    Without any value the cell is empty.
    """
    if not values:
        return ""
    middle = f"{mean(values):{sign}.1f}"
    return f"{middle} ± {stdev(values):.1f}" if len(values) > 1 else middle
