"""A person's own samples as one client that never trained: a folder of images by class, or a table of texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hyperlora.data.federation import ClientData, DataError, Samples
from hyperlora.data.images import SUFFIXES, UNREADABLE, decode_image, file_bytes, named_files
from hyperlora.data.listing import Origin
from hyperlora.data.opening import read_listing
from hyperlora.data.plans import split_by_key
from hyperlora.progress import counted
from hyperlora.seeds import content_key

log = logging.getLogger(__name__)
IMAGES, TABLES = SUFFIXES[:3], ("csv", "jsonl", "parquet")
LEAST_SAMPLES = 3


@dataclass(frozen=True)
class Shares:
    """How a client's samples are divided: what is held out for validation and for test."""

    validation: float
    test: float


def read_image_folder(
    root: Path, client_id: str, class_names: Sequence[str], *, image_size: int, channels: int, shares: Shares
) -> ClientData:
    """Return a person's images as one unseen client, ordered and divided by a hash of every file's content.

    So the first images of a part, from which its signature is made, are of all classes. Images that cannot be read
    are left out and named.

    Args:
        root: directory with one directory for each class; a class may be missing.
        client_id: the name of the client.
        class_names: the classes of the task, in the order of the labels.
        image_size: side in pixels that the images are resized to (bicubic).
        channels: 1 (grey) or 3 (RGB).
        shares: what is held out.

    Raises:
        DataError: a directory is no class of the task, or there are too few images.
    """
    files = list(_labelled_files(root, class_names))
    samples = [(file_bytes(file), label) for file, label in counted(files, "reading images", len(files))]
    decoded = [_decoded(encoded, image_size, channels) for encoded, _ in samples]
    bad = [file for (file, _), image in zip(files, decoded, strict=True) if image is None]
    if bad:
        named = named_files([file.relative_to(root) for file in bad])
        log.warning("%d of %d images cannot be read and are left out%s", len(bad), len(files), named)
    if len(files) - len(bad) < LEAST_SAMPLES:
        raise DataError(
            f"'{root}' has {len(files) - len(bad)} readable images below its class directories, expected at least "
            f"{LEAST_SAMPLES}; put them as {class_names[0]}/*.jpg, with .jpg, .jpeg or .png"
        )
    return _of_images(samples, decoded, client_id, shares)


def read_images_given(
    samples: Sequence[tuple[bytes, int]], client_id: str, *, image_size: int, channels: int, shares: Shares
) -> ClientData:
    """Return encoded images with their labels as one unseen client, as :func:`read_image_folder` does files.

    Raises:
        DataError: one cannot be read, or there are too few.
    """
    if len(samples) < LEAST_SAMPLES:
        raise DataError(f"expected at least {LEAST_SAMPLES} images, got {len(samples)}")
    decoded = [_decoded(encoded, image_size, channels) for encoded, _ in samples]
    bad = sum(image is None for image in decoded)
    if bad:
        raise DataError(f"{bad} of {len(samples)} images cannot be read: expected png or jpg files")
    return _of_images(samples, decoded, client_id, shares)


def _of_images(
    samples: Sequence[tuple[bytes, int]], decoded: Sequence[Tensor | None], client_id: str, shares: Shares
) -> ClientData:
    """Return what was decoded as a client, ordered by a hash of the files' content."""
    keyed = sorted(
        (
            (content_key(encoded), label, image)
            for (encoded, label), image in zip(samples, decoded, strict=True)
            if image is not None
        ),
        key=lambda one: one[0],
    )
    images = torch.stack([image for _, _, image in keyed])
    return _divided(images, [label for _, label, _ in keyed], [key for key, _, _ in keyed], client_id, shares)


def read_text_table(path: Path, client_id: str, kind: str, origin: Origin, shares: Shares) -> ClientData:
    """Return a person's texts as one unseen client, ordered and divided by a hash of every text.

    Args:
        path: a csv, jsonl or parquet file.
        client_id: the name of the client.
        kind: that of the run's data: ``instructions``, or anything else for texts with a label.
        origin: classes of the task and names of the columns; its path is not used.
        shares: what is held out.

    Raises:
        DataError: the file cannot be read, has none of the columns, or too few rows of the task's classes.
    """
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in TABLES or not path.is_file():
        raise DataError(f"'{path}' is no {', '.join(TABLES[:-1])} or {TABLES[-1]} file, which a run on texts takes")
    located = Origin(
        str(path.absolute()), 1, origin.classes, origin.text_column, origin.label_column, origin.domain_column
    )
    listing = read_listing("instructions" if kind == "instructions" else suffix, located)
    texts, labels, keys = listing.read(client_id, [row for rows in listing.domains.values() for row in rows])
    if len(keys) < LEAST_SAMPLES:
        raise DataError(f"'{path}' has {len(keys)} texts of the run's classes, expected at least {LEAST_SAMPLES}")
    order = sorted(range(len(keys)), key=lambda row: keys[row])
    held = [texts[row] for row in order] if isinstance(texts, Sequence) else texts[order]
    return _divided(held, labels[order].tolist(), [keys[row] for row in order], client_id, shares)


def _divided(
    inputs: Tensor | Sequence[str], labels: Sequence[int], keys: Sequence[str], client_id: str, shares: Shares
) -> ClientData:
    parts = split_by_key(keys, validation_fraction=shares.validation, test_fraction=shares.test, client_id=client_id)
    numbers = torch.tensor(labels, dtype=torch.int64)
    chosen = [[inputs[row] for row in part] if isinstance(inputs, Sequence) else inputs[part] for part in parts]
    train, validation, test = (Samples(some, numbers[part]) for some, part in zip(chosen, parts, strict=True))
    return ClientData(client_id, client_id, False, train, validation, test)


def _labelled_files(root: Path, class_names: Sequence[str]) -> Iterator[tuple[Path, int]]:
    if not root.is_dir():
        raise DataError(f"there is no directory '{root}'")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [path.name for path in folders if path.name not in class_names]
    if unknown:
        raise DataError(
            f"'{root}' has directories that are no class of the run: {', '.join(unknown)}; "
            f"its classes are {', '.join(class_names)}"
        )
    for folder in folders:
        label = list(class_names).index(folder.name)
        yield from ((file, label) for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGES)


def _decoded(encoded: bytes, image_size: int, channels: int) -> Tensor | None:
    """Return an image, grey as clients of a run make it: the mean of the colours."""
    try:
        pixels = decode_image(encoded, image_size)
    except UNREADABLE:
        return None
    return pixels if channels == 3 else pixels.float().mean(0, keepdim=True).byte()
