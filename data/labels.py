"""Labels as people write them, turned into numbers; those that are not among the classes are left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from data.federation import DataError

log = logging.getLogger(__name__)


def number_labels(labels: Sequence[str], classes: Sequence[str], origin: str) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes and the number of each label, -1 for one that is not among them.

    Args:
        labels: names, or numbers that count the classes from 0.
        classes: names in order; empty takes the labels that occur, sorted (by value where all are numbers).
        origin: where they come from, for messages.

    Raises:
        DataError: no label is among the classes, or there is none.
    """
    names = tuple(classes) or _sorted({label for label in labels if label})
    numbers = {name: index for index, name in enumerate(names)}
    if classes:
        numbers |= {str(index): index for index in range(len(names)) if str(index) not in numbers}
    found = [numbers.get(label, -1) for label in labels]
    if not found or max(found) < 0:
        raise DataError(f"'{origin}' has no sample of a known class; data.classes is '{','.join(classes)}'")
    _tell(labels, found, names, origin)
    return names, found


def _tell(labels: Sequence[str], found: Sequence[int], names: Sequence[str], origin: str) -> None:
    unknown = Counter(label for label, number in zip(labels, found, strict=True) if number < 0)
    if unknown:
        named = ", ".join(f"'{label}' ({count})" for label, count in unknown.most_common(5))
        log.warning("%d samples of '%s' are left out, their class is unknown: %s", unknown.total(), origin, named)
    empty = [name for index, name in enumerate(names) if index not in set(found)]
    if empty:
        log.warning("%d of %d classes have no sample in '%s': %s", len(empty), len(names), origin, ", ".join(empty[:5]))


def _sorted(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))
