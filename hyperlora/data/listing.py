"""What is known of a data set before its samples are read: names, labels, domains, and how to read a row."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hyperlora.data.federation import DataError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
ONE_DOMAIN = "all"
"""The domain of a data set that has no others."""


class Source(NamedTuple):
    """Samples that were read: images (n, c, h, w) uint8 or n texts, labels (n,) int64 and one split key each."""

    inputs: Tensor | Sequence[str]
    labels: Tensor
    keys: list[str]


Reader = Callable[[str, Sequence[int]], Source]
"""Reads the samples of a domain at the given rows of the data set; leaves out, with a count, what is unreadable."""


@dataclass(frozen=True)
class Origin:
    """Where samples are and how they are named; the values are those of the keys under ``data``.

    Attributes:
        image_size: side in pixels that images are resized to.
        classes: names of the classes in the order of the labels; empty takes those that the data have.
    """

    path: str = ""
    image_size: int = 16
    classes: tuple[str, ...] = ()
    text_column: str = "text"
    label_column: str = "label"
    domain_column: str = "domain"
    first_classes: int = 0
    revision: str = ""


@dataclass(frozen=True)
class Listing:
    """The rows of a data set.

    Attributes:
        class_names: in the order of the labels.
        domains: rows of each domain.
        labels: class of every row.
        read: reads rows.
        test: rows of the test split that the data set itself comes with; empty where it has none.
    """

    class_names: tuple[str, ...]
    domains: Mapping[str, Sequence[int]]
    labels: Sequence[int]
    read: Reader
    test: frozenset[int] = frozenset()

    def of_first_classes(self, count: int) -> Listing:
        """Return the listing of the rows whose label is below ``count``; domains without any are left out.

        Raises:
            DataError: there are fewer classes.
        """
        if count > len(self.class_names):
            raise DataError(f"data.first-classes is {count}, but the data have {len(self.class_names)} classes")
        kept = {name: [row for row in rows if self.labels[row] < count] for name, rows in self.domains.items()}
        return replace(self, class_names=self.class_names[:count], domains={k: v for k, v in kept.items() if v})


def absolute_path(path: str, what: str) -> Path:
    """Return where ``what`` is; raises DataError for a relative path."""
    if not Path(path).is_absolute():
        raise DataError(f"the path of {what} must be absolute, got '{path}'")
    return Path(path)


def rows_by_domain(domains: Iterable[str], numbers: Iterable[int]) -> dict[str, list[int]]:
    """Return the rows of each domain, without those whose label has no number (-1)."""
    rows: dict[str, list[int]] = {}
    for row, (domain, number) in enumerate(zip(domains, numbers, strict=True)):
        if number >= 0:
            rows.setdefault(domain, []).append(row)
    return rows


def number_labels(labels: Sequence[str], classes: Sequence[str], origin: str) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes and the number of each label, -1 for one that is not among them.

    Args:
        labels: names, or numbers that count the classes from 0 where no class has a number for a name.
        classes: names in order; empty takes the labels that occur, sorted (by value where all are numbers).
        origin: where they come from, for messages.

    Raises:
        DataError: no label is among the classes, or there is none.
    """
    names = tuple(classes) or in_order({label for label in labels if label})
    numbers = {name: index for index, name in enumerate(names)}
    if classes and not any(name.isdecimal() for name in names):
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
    occurring = set(found)
    empty = [name for index, name in enumerate(names) if index not in occurring]
    if empty:
        log.warning("%d of %d classes have no sample in '%s': %s", len(empty), len(names), origin, ", ".join(empty[:5]))


def in_order(names: set[str]) -> tuple[str, ...]:
    """Return the names of classes sorted, by value where all are numbers."""
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names))
