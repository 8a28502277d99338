"""What is known of each data set before any sample is read: its domains and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DataSetInfo:
    """Names of the domains, and of the classes in the order of the labels."""

    domains: tuple[str, ...]
    class_names: tuple[str, ...]


DATA_SETS: Mapping[str, DataSetInfo] = {
    "digits": DataSetInfo(("clean", "inverted", "noisy", "rotated"), tuple("0123456789")),
    "pacs": DataSetInfo(
        ("art_painting", "cartoon", "photo", "sketch"),
        ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
    ),
}
