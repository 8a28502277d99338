"""Opening a data set by name: what is known of it, and its division over clients."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module

from hyperlora.data.federation import DATA_SETS, DataError, DataSetInfo, Division, Federation
from hyperlora.data.listing import Listing, Origin
from hyperlora.data.plans import DividedFederation, plan_clients

OWN_DATA = ("folder", "csv", "jsonl", "parquet", "instructions")
READERS = {
    "digits": "digits.list_digits",
    "folder": "images.list_folder",
    "instructions": "tables.list_instructions",
    **dict.fromkeys(("csv", "jsonl", "parquet", "fdu-mtl"), "tables.list_table"),
    **dict.fromkeys(("pacs", "office-home", "cifar100"), "hub_images.list_hub_images"),
    **dict.fromkeys(("domainnet", "nico++"), "split_lists.list_listed_images"),
}
"""By name of the data set, the function that lists it; imported at use, for scikit-learn and datasets take seconds."""
TEXTS = tuple(name for name, reader in READERS.items() if reader.startswith("tables."))
"""The data sets whose samples are texts."""


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
    return read_listing(name, origin)


def read_listing(name: str, origin: Origin) -> Listing:
    """Return the rows of a data set as they are now."""
    if name not in READERS:
        raise DataError(f"there is no data set '{name}'; known are {', '.join(sorted(READERS))}")
    module, _, function = READERS[name].partition(".")
    listing: Listing = getattr(import_module(f"hyperlora.data.{module}"), function)(name, origin)
    return listing.of_first_classes(origin.first_classes) if origin.first_classes else listing
