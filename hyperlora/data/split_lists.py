"""Images with official split lists: ``{domain}_train.txt`` and ``{domain}_test.txt``, a path and a label per line.

DomainNet (Peng et al. 2019, arXiv 1812.01754): a line is ``clipart/axe/image.jpg 13``; the lists lie next to the
directories of the domains, in ``splits`` or in ``txt``. NICO++ (Zhang et al. 2022, arXiv 2204.08040): a line is
``NICO_DG/autumn/hot air balloon/image.jpg 29``; the lists lie in ``NICO_DG_official`` next to ``NICO_DG``. Both as the
public loaders of FedRA (arXiv 2311.11227) read them; the archives themselves were not at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hyperlora.data.federation import DataError
from hyperlora.data.hub_images import list_hub_images
from hyperlora.data.images import listing_of_files
from hyperlora.data.listing import Listing, Origin

PLACES = ("", "splits", "txt", "NICO_DG_official")
IMAGES = ("", "NICO_DG")
TRAIN, TEST = "_train.txt", "_test.txt"


class Entry(NamedTuple):
    """One line of a list."""

    file: Path
    domain: str
    class_name: str
    label: int


def list_listed_images(name: str, origin: Origin) -> Listing:
    """List a data set by its split lists, or by its parquet files where there are no lists at its path.

    Raises:
        DataError: the lists are incomplete or wrong, or as :func:`~hyperlora.data.hub_images.list_hub_images`.
    """
    lists = find_lists(Path(origin.path)) if Path(origin.path).is_absolute() else {}
    return list_split_files(lists, origin) if lists else list_hub_images(name, origin)


def find_lists(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return by domain the training and the test list below ``root``; empty where there are none.

    Raises:
        DataError: a training list has no test list next to it.
    """
    for place in PLACES:
        found = {file.name.removesuffix(TRAIN): file for file in sorted((root / place).glob(f"*{TRAIN}"))}
        for domain, train in found.items():
            if not train.with_name(domain + TEST).is_file():
                raise DataError(f"there is no list '{domain}{TEST}' beside '{train}'")
        if found:
            return {domain: (train, train.with_name(domain + TEST)) for domain, train in found.items()}
    return {}


def list_split_files(lists: Mapping[str, tuple[Path, Path]], origin: Origin) -> Listing:
    """List the images of the lists; they are decoded when a client is loaded.

    Classes are numbered as in the lists and named as their directories. An image that is listed and not there is left
    out with a count, like one that cannot be decoded.

    Raises:
        DataError: a list cannot be read, a domain has no directory, or a label stands for two classes.
    """
    root = Path(origin.path)
    train, test = (
        [entry for domain, files in lists.items() for entry in _entries(root, domain, files[part])] for part in (0, 1)
    )
    entries = train + test
    files, domains, labels, _ = zip(*entries, strict=True) if entries else ((), (), (), ())
    classes = origin.classes or _class_names(entries)
    return listing_of_files(files, domains, labels, classes, origin, frozenset(range(len(train), len(entries))))


def _entries(root: Path, domain: str, file: Path) -> Iterator[Entry]:
    """Yield the lines of a list: of a path the last three parts count, ``domain/class/image``."""
    images = next((root / place for place in IMAGES if (root / place / domain).is_dir()), None)
    if images is None:
        raise DataError(f"'{file}' lists images of domain '{domain}', but there is no directory '{root / domain}'")
    for number, line in enumerate(_lines(file), start=1):
        path, _, label = line.rpartition(" ")
        parts = path.split("/")[-3:]
        if len(parts) < 3 or not label.isdecimal():
            raise DataError(f"line {number} of '{file}' is not 'domain/class/image label', got '{line[:80]}'")
        yield Entry(images.joinpath(*parts), domain, parts[1], int(label))


def _lines(file: Path) -> Iterator[str]:
    try:
        yield from (line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' cannot be read as text in UTF-8: {error}") from error


def _class_names(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the classes in the order of their labels; a label that is not used is its own name."""
    names: dict[int, str] = {}
    for entry in entries:
        if names.setdefault(entry.label, entry.class_name) != entry.class_name:
            raise DataError(
                f"label {entry.label} stands for class '{names[entry.label]}' and for class '{entry.class_name}' "
                f"in the lists of '{entry.domain}'"
            )
    return tuple(names.get(label, str(label)) for label in range(max(names, default=-1) + 1))
