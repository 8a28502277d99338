"""Differences of two rows, paired by seed and client, with intervals of a hierarchical bootstrap.

Seeds are drawn with replacement, then clients within each drawn seed (Davison and Hinkley 1997, section 3.8); the
interval has the 2.5 and 97.5 percentiles of the mean difference. With few seeds the draw of seeds is coarse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.table import markdown
from hyperlora.messages.evaluate import START_TRACK

Runs = Sequence[Mapping[str, Any]]
DRAWS, SEED = 4000, 20
COMPARISONS = {
    "as received": ("zero_step", "zero_step"),
    "adapted": ("k_step", "k_step"),
    "as received against adapted": ("zero_step", "k_step"),
}

SEEN_FROM_THE_RIVAL = ("as received", "adapted", "adapted against as received")
"""What the comparisons are where a row is the rival and what it is compared with is the reference."""


@dataclass(frozen=True)
class Difference:
    """A mean difference in points, its 95 % interval, and how many seeds it is over."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """``above``, ``below``, or ``level`` where the interval, as it is printed, holds zero.

        An end that rounds to 0.0 is within what another draw of the bootstrap would change.
        """
        return "above" if round(self.low, 1) > 0 else "below" if round(self.high, 1) < 0 else "level"

    def __str__(self) -> str:
        """Return a cell of a table."""
        level = ", level" if self.verdict == "level" else ""
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]{level}"


def paired_difference(left: Runs, right: Runs, group: str, columns: tuple[str, str]) -> Difference | None:
    """Return how far the clients of ``left`` are above those of ``right``; None where no client is in both.

    Args:
        left, right: runs of two rows; seeds that only one of them has are left out.
        group: ``seen`` or ``unseen``.
        columns: figure of a client in the left and in the right row, as ``zero_step`` and ``k_step``.
    """
    others = {run["seed"]: _by_client(run, group, columns[1]) for run in right}
    parts = []
    for run in left:
        own, other = _by_client(run, group, columns[0]), others.get(run["seed"], {})
        if shared := sorted(own.keys() & other.keys()):
            parts.append(np.array([own[name] - other[name] for name in shared]))
    if not parts:
        return None
    low, high = np.percentile(bootstrap_means(parts), [2.5, 97.5])
    middle = np.mean([part.mean() for part in parts])
    return Difference(100 * float(middle), 100 * float(low), 100 * float(high), len(parts))


def bootstrap_means(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return ``DRAWS`` means over seeds of means over clients, both drawn with replacement.

    Args:
        parts: for each seed the values of its clients, shape (clients,).
    """
    chance, counts = np.random.default_rng(SEED), np.array([len(part) for part in parts])
    padded = np.zeros((len(parts), counts.max()))
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    seeds = chance.integers(len(parts), size=(DRAWS, len(parts), 1))
    drawn = (chance.random((DRAWS, len(parts), counts.max())) * counts[seeds]).astype(int)
    counted = np.arange(counts.max()) < counts[seeds]
    means = (padded[seeds, drawn] * counted).sum(axis=2) / counts[seeds[..., 0]]
    return np.asarray(means.mean(axis=1))


def interval_table(results: Mapping[str, Runs], order: Sequence[str], reference: str) -> str:
    """Return a markdown table of differences to ``reference`` in points with 95 % intervals.

    In the last column of a group the row's adapted figure is compared with the reference's as received.
    """
    columns = [f"{group}, {what}" for group in ("seen", "unseen") for what in SEEN_FROM_THE_RIVAL]
    rows, seeds = {}, set()
    for name in order:
        found = [
            paired_difference(results.get(name, []), results.get(reference, []), group, pair[::-1])
            for group in ("seen", "unseen")
            for pair in COMPARISONS.values()
        ]
        if name != reference and any(found):
            rows[name] = [str(one) if one else "" for one in found]
            seeds |= {one.seeds for one in found if one}
    if not rows:
        return ""
    numbers = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
    note = (
        f"\n\nPoints, paired by client and seed, 95 % intervals of a bootstrap over {numbers} seed(s) and the clients "
        "of each; so few seeds make the draw of seeds coarse. Level: the interval, as printed, holds zero."
    )
    return markdown(f"minus {reference}", columns, rows) + note


def calibration_table(results: Mapping[str, Runs], order: Sequence[str]) -> str:
    """Return a markdown table: expected calibration error in points, mean over clients and seeds; empty without any."""
    columns = [f"{group}, {what}" for group in ("seen", "unseen") for what in ("as received", "adapted")]
    rows = {}
    for name in order:
        found = [_calibration(results.get(name, []), group, at) for group in ("seen", "unseen") for at in (0, -1)]
        if any(found):
            rows[name] = found
    return markdown("calibration error", columns, rows) if rows else ""


def _calibration(runs: Runs, group: str, at: int) -> str:
    means = []
    for run in runs:
        clients = [one for one in run["clients"] if one["track"] == START_TRACK and one["seen"] == (group == "seen")]
        errors = [list(one["calibration_by_steps"].values())[at] for one in clients if one.get("calibration_by_steps")]
        if errors:
            means.append(float(np.mean(errors)))
    return f"{100 * np.mean(means):.1f}" if means else ""


def _by_client(run: Mapping[str, Any], group: str, column: str) -> dict[str, float]:
    """Return a figure of the honest clients of a group."""
    seen, attackers = group == "seen", run.get("attackers", ())
    return {
        one["client_id"]: float(one[column])
        for one in run["clients"]
        if one["track"] == START_TRACK and one["seen"] == seen and one["client_id"] not in attackers
    }
