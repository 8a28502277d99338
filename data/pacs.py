"""PACS: photos, art paintings, cartoons and sketches of seven classes, from parquet files or the hub."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, Value, load_dataset
from PIL import Image as PillowImage
from torch import Tensor

from data.federation import DataError, Division, Federation
from data.partition import DividedFederation, Source, plan_clients

HUB_NAME = "flwrlabs/pacs"

_log = logging.getLogger(__name__)


def open_pacs(path: str, image_size: int, division: Division) -> Federation:
    """Divide PACS; see :func:`data.federation.open_federation`. Images are decoded when a client is loaded.

    Args:
        path: absolute path of a directory of parquet files with the columns ``image``, ``domain`` and
            ``label``; empty loads ``flwrlabs/pacs`` from the hub.
        image_size: side in pixels that the images are resized to (bicubic).
        division: the number of clients, the skew and the seed.

    Raises:
        DataError: if the path is relative or missing, or holds something else.
    """
    if image_size < 1:
        raise DataError(f"images need at least 1 px, got an image size of {image_size} px")
    table = _checked(_local(path) if path else _from_hub(), path or HUB_NAME)
    domains: dict[str, list[int]] = {}
    for row, domain in enumerate(table["domain"]):
        domains.setdefault(domain, []).append(row)
    plans = plan_clients(domains, list(table["label"]), division)

    def read(domain: str, rows: Sequence[int]) -> Source:
        return _read(table, domain, rows, image_size)

    return DividedFederation(plans, table.features["label"].names, division, read)


def _local(path: str) -> Dataset:
    directory = Path(path)
    if not directory.is_absolute():
        raise DataError(f"the path of PACS must be absolute, got '{path}'")
    if not directory.is_dir():
        raise DataError(f"there is no directory with PACS at '{path}'")
    files = sorted(str(file) for file in directory.rglob("*.parquet"))
    if not files:
        raise DataError(f"there are no parquet files of PACS in '{path}'")
    try:
        return load_dataset("parquet", data_files=files, split="train")
    except Exception as error:  # datasets wraps whatever pyarrow raises in several unrelated types
        raise DataError(f"the parquet files in '{path}' cannot be read ({type(error).__name__})") from error


def _from_hub() -> Dataset:
    try:
        return load_dataset(HUB_NAME, split="train")
    except Exception as error:  # the hub's client raises from half a dozen unrelated hierarchies
        raise DataError(
            f"PACS could not be loaded from the hub as '{HUB_NAME}' ({type(error).__name__}); "
            "connect to the hub or set data.path to the absolute path of a local copy"
        ) from error


def _checked(table: Dataset, origin: str) -> Dataset:
    """Return the three columns with undecoded images, or raise for what is not PACS's layout."""
    wanted = {"image": Image, "domain": Value, "label": ClassLabel}
    for column, kind in wanted.items():
        found = table.features.get(column)
        if not isinstance(found, kind):
            raise DataError(
                f"'{origin}' is not PACS: column '{column}' must be {kind.__name__}, "
                f"got {'none' if found is None else type(found).__name__}"
            )
    table = table.select_columns(list(wanted)).cast_column("image", Image(decode=False))
    if not len(table) or None in table.unique("domain") or None in table.unique("label"):
        raise DataError(f"'{origin}' is not PACS: it has no rows or rows without domain or label")
    return table


def _read(table: Dataset, domain: str, rows: Sequence[int], image_size: int) -> Source:
    images, labels, keys = [], [], []
    for sample in table.select(rows):
        encoded: bytes = (sample["image"] or {}).get("bytes") or b""
        pixels = _decode(encoded, image_size)
        if pixels is not None:
            images.append(pixels)
            labels.append(sample["label"])
            keys.append(hashlib.blake2b(encoded, digest_size=16).hexdigest())
    if len(images) < len(rows):
        _log.warning("%d of %d images of domain '%s' are unreadable", len(rows) - len(images), len(rows), domain)
    stacked = torch.stack(images) if images else torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
    return Source(stacked, torch.tensor(labels, dtype=torch.int64), keys)


def _decode(encoded: bytes, image_size: int) -> Tensor | None:
    """Return an encoded image as RGB (3, image_size, image_size) uint8, or None if it is unreadable."""
    try:
        with PillowImage.open(io.BytesIO(encoded)) as image:
            resized = image.convert("RGB").resize((image_size, image_size), PillowImage.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError):
        return None
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
