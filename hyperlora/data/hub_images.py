"""Image data sets of the hub by name, or a local copy of their parquet files."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, Image, Value, concatenate_datasets, load_dataset

from hyperlora.data.federation import DataError
from hyperlora.data.images import read_images
from hyperlora.data.listing import ONE_DOMAIN, Listing, Origin, Source, absolute_path, rows_by_domain

log = logging.getLogger(__name__)
TEST = "test"


@dataclass(frozen=True)
class HubSet:
    """Where a data set is on the hub and what its columns are called; an empty domain column is no domains.

    ``split`` names its splits, of which ``test`` is the official test split; without a hub name it is not on the hub.
    A local copy may also be a directory with split lists (:mod:`hyperlora.data.split_lists`) where ``lists`` is true.
    ``revision`` is the commit of the hub's repository that is loaded; empty where none was ever written down here.
    """

    title: str
    hub_name: str
    split: tuple[str, ...] = ("train",)
    lists: bool = False
    image: str = "image"
    label: str = "label"
    domain: str = "domain"
    revision: str = ""


HUB_SETS = {
    "pacs": HubSet("PACS", "flwrlabs/pacs"),
    "office-home": HubSet("Office-Home", "flwrlabs/office-home"),
    "domainnet": HubSet("DomainNet", "wltjr1007/DomainNet", ("train", TEST), lists=True),
    "nico++": HubSet("NICO++", "", ("train", TEST), lists=True),
    "cifar100": HubSet(
        "CIFAR-100",
        "uoft-cs/cifar100",
        ("train", TEST),
        image="img",
        label="fine_label",
        domain="",
        revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
    ),
}


def list_hub_images(name: str, origin: Origin) -> Listing:
    """List a data set of :data:`HUB_SETS`; images are decoded when a client is loaded.

    Args:
        name: key in :data:`HUB_SETS`.
        origin: its path is the absolute path of a directory of parquet files with the set's columns; an empty one
            loads from the hub.

    Raises:
        DataError: if the path is relative or missing, or holds something else.
    """
    known = HUB_SETS[name]
    if origin.image_size < 1:
        raise DataError(f"images need at least 1 px, got an image size of {origin.image_size} px")
    table, num_test = _table(known, origin.path, origin.revision)
    labels = list(table[known.label])
    domains = rows_by_domain(_domain_names(table, known), labels)

    def read(domain: str, rows: Sequence[int]) -> Source:
        return read_images(_encoded(table, rows, known), domain, origin.image_size)

    names = tuple(table.features[known.label].names)
    return Listing(names, domains, labels, read, frozenset(range(len(table) - num_test, len(table))))


def encoded_images(name: str, path: str, rows: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Yield the image files, as they came, and labels of some rows of a data set; see :func:`list_hub_images`.

    Raises:
        DataError: the set is none of images, or cannot be read.
    """
    if name not in HUB_SETS:
        raise DataError(f"'{name}' has no image files; known are {', '.join(HUB_SETS)}")
    yield from _encoded(_table(HUB_SETS[name], path)[0], rows, HUB_SETS[name])


def _table(known: HubSet, path: str, revision: str = "") -> tuple[Dataset, int]:
    """Return all rows, those of the test split last, and how many these are."""
    parts = _local(path, known) if path else _from_hub(known, revision)
    checked = {split: _checked(part, path, known) for split, part in parts.items()}
    return concatenate_datasets(list(checked.values())), len(checked.get(TEST, ()))


def _local(path: str, known: HubSet) -> dict[str, Dataset]:
    """Return the parquet files below ``path`` by split, the test split last: files whose name begins with its name."""
    directory = absolute_path(path, known.title)
    if not directory.is_dir():
        raise DataError(f"there is no directory with {known.title} at '{path}'")
    files = sorted(directory.rglob("*.parquet"), key=str)
    if not files:
        lists = " and no lists {domain}_train.txt" if known.lists else ""
        raise DataError(f"there are no parquet files{lists} of {known.title} in '{path}'")
    tests = [str(file) for file in files if TEST in known.split and file.name.startswith(TEST)]
    others = [str(file) for file in files if str(file) not in tests]
    chosen = {split: part for split, part in (("train", others), (TEST, tests)) if part}
    try:
        return {
            split: load_dataset("parquet", data_files=list(map(glob.escape, part)), split="train")
            for split, part in chosen.items()
        }
    except Exception as error:  # datasets wraps whatever pyarrow raises in several unrelated types
        raise DataError(f"the parquet files in '{path}' cannot be read ({type(error).__name__})") from error


def _from_hub(known: HubSet, wanted: str) -> dict[str, Dataset]:
    if not known.hub_name:
        raise DataError(f"{known.title} is not loaded from the hub; set data.path to the absolute path of a local copy")
    revision = wanted or known.revision
    if not revision:
        log.warning("'%s' is taken as it is on the hub today; data.revision names a commit", known.hub_name)
    try:
        return {split: load_dataset(known.hub_name, split=split, revision=revision or None) for split in known.split}
    except Exception as error:  # the hub's client raises from half a dozen unrelated hierarchies
        raise DataError(
            f"{known.title} could not be loaded from the hub as '{known.hub_name}' ({type(error).__name__}); "
            "connect to the hub or set data.path to the absolute path of a local copy"
        ) from error


def _checked(table: Dataset, path: str, known: HubSet) -> Dataset:
    """Return the columns with undecoded images, or raise for what is not the set's layout."""
    origin = path or known.hub_name
    wanted: dict[str, tuple[type, ...]] = {known.image: (Image,), known.label: (ClassLabel,)}
    if known.domain:
        wanted[known.domain] = (Value, ClassLabel)
    for column, kinds in wanted.items():
        found = table.features.get(column)
        if not isinstance(found, kinds):
            raise DataError(
                f"'{origin}' is not {known.title}: column '{column}' must be {kinds[0].__name__}, "
                f"got {'none' if found is None else type(found).__name__}"
            )
    table = table.select_columns(list(wanted)).cast_column(known.image, Image(decode=False))
    if not len(table) or any(None in table.unique(column) for column in wanted if column != known.image):
        raise DataError(f"'{origin}' is not {known.title}: it has no rows or rows without domain or label")
    return table


def _domain_names(table: Dataset, known: HubSet) -> list[str]:
    if not known.domain:
        return [ONE_DOMAIN] * len(table)
    feature, values = table.features[known.domain], list(table[known.domain])
    names = feature.int2str(values) if isinstance(feature, ClassLabel) else values
    return [re.sub(r"\s+", "_", str(name)) for name in names]


def _encoded(table: Dataset, rows: Sequence[int], known: HubSet) -> Iterator[tuple[bytes, int]]:
    for sample in table.select(rows):
        yield (sample[known.image] or {}).get("bytes") or b"", sample[known.label]
