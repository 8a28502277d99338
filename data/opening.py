"""Opening a data set by name: what is known of it, and its division over clients."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from data.catalog import DATA_SETS, DataSetInfo
from data.federation import DataError, Division, Federation
from data.listing import Listing, Origin
from data.plans import DividedFederation, plan_clients

OWN_DATA = ("folder", "csv", "jsonl", "parquet", "instructions")


def open_federation(name: str, origin: Origin, division: Division) -> Federation:
    """Open a data set and divide it; the same arguments always give the same clients.

    Raises:
        DataError: for an unknown name, data that is missing or wrong, or a division that is not possible.
    """
    listing = list_samples(name, origin)
    plans = plan_clients(listing.domains, listing.labels, division)
    return DividedFederation(plans, listing.class_names, division, listing.read)


def describe_data(name: str, origin: Origin) -> DataSetInfo:
    """Return the domains and classes of a data set, without reading one that is in the catalogue.

    Own data without a path, as a server has them, are described by the classes alone; their domains are not known.

    Raises:
        DataError: the data have to be read and cannot.
    """
    if name in DATA_SETS:
        return DATA_SETS[name]
    if name in OWN_DATA and origin.classes and not origin.path:
        return DataSetInfo((), origin.classes)
    listing = list_samples(name, origin)
    return DataSetInfo(tuple(sorted(listing.domains)), listing.class_names)


@lru_cache(maxsize=4)
def list_samples(name: str, origin: Origin) -> Listing:
    """Return the rows of a data set; kept, so that a process reads them once."""
    opener = _OPENERS.get(name)
    if opener is None:
        raise DataError(f"there is no data set '{name}'; known are {', '.join(sorted(_OPENERS))}")
    return opener(origin)


def _digits(origin: Origin) -> Listing:
    from data.digits import list_digits  # scikit-learn takes seconds to import

    return list_digits(origin)


def _hub_images(name: str, origin: Origin) -> Listing:
    from data.hub_images import list_hub_images  # so does datasets

    return list_hub_images(name, origin)


def _folder(origin: Origin) -> Listing:
    from data.folder import list_folder

    return list_folder(origin)


def _table(kind: str, origin: Origin) -> Listing:
    from data.table import list_table

    return list_table(kind, origin)


def _instructions(origin: Origin) -> Listing:
    from data.instructions import list_instructions

    return list_instructions(origin)


_OPENERS: dict[str, Callable[[Origin], Listing]] = {
    "digits": _digits,
    "folder": _folder,
    "instructions": _instructions,
    "fdu-mtl": partial(_table, "parquet"),
    **{name: partial(_hub_images, name) for name in ("pacs", "office-home", "domainnet", "cifar100")},
    **{kind: partial(_table, kind) for kind in ("csv", "jsonl", "parquet")},
}
