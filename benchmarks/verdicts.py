"""What the intervals say of one row, in words that are printed and never typed: above, level and below, by rival."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.bootstrap import COMPARISONS, Difference, Runs, paired_difference

Comparison = tuple[str, str, str, Difference]


def verdicts(results: Mapping[str, Runs], order: Sequence[str], reference: str) -> str:
    """Return a sentence: in how many comparisons the reference is above, level and below, the last two by name.

    A comparison is a rival, a group (seen or unseen) and a column: both as received, both adapted, or the reference as
    received against the adapted rival. "Level": the interval, as printed, holds zero.
    Empty where there is nothing to compare.
    """
    found = list(_comparisons(results, order, reference))
    if not found:
        return ""
    by_word: dict[str, list[Comparison]] = {word: [] for word in ("above", "level", "below")}
    for one in found:
        by_word[one[3].verdict].append(one)
    seeds = sorted({one[3].seeds for one in found})
    counts = ", ".join(f"{word} in {len(several)}" for word, several in by_word.items())
    says = f"Of {len(found)} comparisons ({_numbers(seeds)} seed(s)) {reference} is {counts}."
    for word, several in list(by_word.items())[1:]:
        says += f" {word.capitalize()}: {'; '.join(map(_told, several))}." if several else ""
    return says


def _comparisons(results: Mapping[str, Runs], order: Sequence[str], reference: str) -> Iterator[Comparison]:
    own: Sequence[Mapping[str, Any]] = results.get(reference, [])
    for rival in (name for name in order if name != reference):
        for group in ("seen", "unseen"):
            for column, pair in COMPARISONS.items():
                difference = paired_difference(own, results.get(rival, []), group, pair)
                if difference:
                    yield rival, group, column, difference


def _told(one: Comparison) -> str:
    rival, group, column, difference = one
    return f"{rival}, {group}, {column} ({difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}])"


def _numbers(seeds: Sequence[int]) -> str:
    return " to ".join(map(str, sorted({seeds[0], seeds[-1]})))
