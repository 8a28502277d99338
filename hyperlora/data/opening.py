"""Opening a data set by name: what is known of it, and its division over clients."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from hyperlora.data.federation import DATA_SETS, DataError, DataSetInfo, Division, Federation
from hyperlora.data.listing import Listing, Origin
from hyperlora.data.plans import DividedFederation, plan_clients

OWN_DATA = ("folder", "csv", "jsonl", "parquet", "instructions")


def open_federation(name: str, origin: Origin, division: Division) -> Federation:
    """Open a data set and divide it; the same arguments always give the same clients.

    Raises:
        DataError: for an unknown name, data that is missing or wrong, or a division that is not possible.
    """
    listing = list_samples(name, origin)
    official = division.split == "official"
    if official and not listing.test:
        raise DataError(f"data.split is 'official', but '{name}' has no test split of its own; set it to 'hash'")
    plans = plan_clients(listing.domains, listing.labels, division, listing.test if official else frozenset())
    return DividedFederation(plans, listing.class_names, division, listing.read)


def describe_data(name: str, origin: Origin) -> DataSetInfo:
    """Return the domains and classes of a data set, without reading one that is in the catalogue.

    Own data without a path, as a server has them, are described by the classes alone; their domains are not known.

    Raises:
        DataError: the data have to be read and cannot.
    """
    count = origin.first_classes or None
    if name in DATA_SETS:
        return DataSetInfo(DATA_SETS[name].domains, DATA_SETS[name].class_names[:count])
    if name in OWN_DATA and origin.classes and not origin.path:
        return DataSetInfo((), origin.classes[:count])
    listing = list_samples(name, origin)
    return DataSetInfo(tuple(sorted(listing.domains)), listing.class_names)


@lru_cache(maxsize=4)
def list_samples(name: str, origin: Origin) -> Listing:
    """Return the rows of a data set; kept, so that a process reads them once."""
    opener = _OPENERS.get(name)
    if opener is None:
        raise DataError(f"there is no data set '{name}'; known are {', '.join(sorted(_OPENERS))}")
    listing = opener(origin)
    return listing.of_first_classes(origin.first_classes) if origin.first_classes else listing


def _digits(origin: Origin) -> Listing:
    from hyperlora.data.digits import list_digits  # scikit-learn takes seconds to import

    return list_digits(origin)


def _hub_images(name: str, origin: Origin) -> Listing:
    from hyperlora.data.hub_images import list_hub_images  # so does datasets

    return list_hub_images(name, origin)


def _listed_images(name: str, origin: Origin) -> Listing:
    from hyperlora.data.split_lists import find_lists, list_split_files

    lists = find_lists(Path(origin.path)) if Path(origin.path).is_absolute() else {}
    return list_split_files(lists, origin) if lists else _hub_images(name, origin)


def _folder(origin: Origin) -> Listing:
    from hyperlora.data.images import list_folder

    return list_folder(origin)


def _table(kind: str, origin: Origin) -> Listing:
    from hyperlora.data.tables import list_table

    return list_table(kind, origin)


def _instructions(origin: Origin) -> Listing:
    from hyperlora.data.tables import list_instructions

    return list_instructions(origin)


_OPENERS: dict[str, Callable[[Origin], Listing]] = {
    "digits": _digits,
    "folder": _folder,
    "instructions": _instructions,
    "fdu-mtl": partial(_table, "parquet"),
    **{name: partial(_hub_images, name) for name in ("pacs", "office-home", "cifar100")},
    **{name: partial(_listed_images, name) for name in ("domainnet", "nico++")},
    **{kind: partial(_table, kind) for kind in ("csv", "jsonl", "parquet")},
}
