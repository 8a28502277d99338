"""One line of the table: what was tried, what is expected of it and what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.table import markdown


@dataclass(frozen=True)
class Row:
    """``count`` tries of one kind; ``passed`` where all of them went as expected."""

    tried: str
    expected: str
    seen: str
    passed: bool
    count: int = 1


def as_table(rows: Sequence[Row]) -> str:
    lines = {
        one.tried: [str(one.count), one.expected, one.seen.replace("|", "/"), "yes" if one.passed else "**NO**"]
        for one in rows
    }
    return markdown("fault or input", ("times", "expected", "seen", "as expected"), lines)
