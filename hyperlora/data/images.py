"""Images in directories: ``root/class/image`` or ``root/domain/class/image``.

What cannot be decoded is left out and counted.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hyperlora.data.federation import DataError
from hyperlora.data.listing import (
    ONE_DOMAIN,
    Listing,
    Origin,
    Source,
    absolute_path,
    in_order,
    number_labels,
    rows_by_domain,
)
from hyperlora.progress import counted
from hyperlora.seeds import content_key

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MOST_NAMED = 3
MODES = {1: "L", 3: "RGB"}
MOST_OF_16_BITS = 2**16 - 1
DEEPEST = 4
"""Levels of directories that are looked into: one more than a tree of images has, so that its error names them."""
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_image(encoded: bytes, image_size: int, channels: int = 3) -> Tensor:
    """Return an encoded image as (channels, image_size, image_size) uint8, grey or RGB; raises :data:`UNREADABLE`."""
    import torch  # takes seconds, and listing files does without

    with Image.open(io.BytesIO(encoded)) as image:
        resized = _of_eight_bits(image).convert(MODES[channels])
        resized = resized.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.array(resized).reshape(image_size, image_size, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits (X-rays, microscopes) scaled to 8, where Pillow would cut values off at 255.

    Raises:
        ValueError: its values are of 32 bits or are fractions, and have no scale of their own.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "I" and values.min() >= 0 and values.max() <= 255:
        return image  # 8 bits in a wider form
    if not image.mode.startswith("I") or values.min() < 0 or values.max() > MOST_OF_16_BITS:
        raise ValueError(f"values of mode {image.mode} have no scale")
    return Image.fromarray((values // 257).astype(np.uint8))


def read_images(
    samples: Iterable[tuple[bytes, int]], domain: str, image_size: int, files: Sequence[Path] = ()
) -> Source:
    """Decode pairs of encoded image and label, which lie in ``files``; the key of a sample is the hash of its bytes."""
    import torch

    images, labels, keys, unreadable = [], [], [], []
    for place, (encoded, label) in enumerate(counted(samples, f"reading images of '{domain}'", len(files))):
        try:
            images.append(decode_image(encoded, image_size))
        except UNREADABLE:
            unreadable.append(place)
            continue
        labels.append(label)
        keys.append(content_key(encoded))
    if unreadable:
        total, named = len(images) + len(unreadable), named_files([files[place] for place in unreadable if files])
        log.warning(
            "%d of %d images of domain '%s' are unreadable and left out%s", len(unreadable), total, domain, named
        )
    stacked = torch.stack(images) if images else torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
    return Source(stacked, torch.tensor(labels, dtype=torch.int64), keys)


def named_files(files: Sequence[Path]) -> str:
    """Return the end of a sentence that names the first of ``files``; empty where there are none."""
    return f": {', '.join(map(str, files[:MOST_NAMED]))}{' ...' if len(files) > MOST_NAMED else ''}" if files else ""


def image_files(root: Path) -> list[Path]:
    """Return all images below a directory, sorted; hidden ones are passed over, links are followed."""
    found = counted(_below(root), f"listing files in '{root}'")
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and not _hidden(path, root))


def _below(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=True):
        if len(Path(folder).relative_to(root).parts) >= DEEPEST - 1:
            folders.clear()
        yield from (Path(folder) / name for name in names)


def unreadable_images(files: Iterable[Path], *, thorough: bool = False) -> Iterator[Path | None]:
    """Yield for every file itself where it is no image, else None.

    Args:
        files: to look at.
        thorough: decode all of each; without, the header and the checksums of formats that have some are read.
    """
    for file in files:
        try:
            with Image.open(file) as image:
                image.load() if thorough else image.verify()
        except UNREADABLE:
            yield file
        else:
            yield None


def listing_of_files(
    files: Sequence[Path],
    domains: Sequence[str],
    labels: Sequence[str],
    classes: Sequence[str],
    origin: Origin,
    test: frozenset[int] = frozenset(),
) -> Listing:
    """Return the listing of image files with a domain and the name of a class each; decoded when a client is loaded.

    Raises:
        DataError: none of the labels is among the classes.
    """
    names, numbers = number_labels(labels, classes, origin.path)

    def read(domain: str, rows: Sequence[int]) -> Source:
        samples = ((file_bytes(files[row]), numbers[row]) for row in rows)
        return read_images(samples, domain, origin.image_size, [files[row] for row in rows])

    return Listing(names, rows_by_domain(domains, numbers), numbers, read, test)


def list_folder(name: str, origin: Origin) -> Listing:
    """List a directory of images.

    A class is a directory, also an empty one; hidden files are passed over. Without domains all images are of one
    domain, ``all``.

    Raises:
        DataError: the path is relative or missing, or holds no images two or three levels deep, or both.
    """
    root = _directory(origin.path)
    files = image_files(root)
    depth = _depth(root, files)
    parts = [path.relative_to(root).parts for path in files]
    folders = root.glob("/".join("*" * (depth - 1)))
    classes = origin.classes or in_order({path.name for path in folders if path.is_dir() and not _hidden(path, root)})
    domains = [part[0] if depth == 3 else ONE_DOMAIN for part in parts]
    return listing_of_files(files, domains, [part[-2] for part in parts], classes, origin)


def _directory(path: str) -> Path:
    if not path:
        raise DataError("data.name is 'folder'; set data.path to the directory of the images")
    root = absolute_path(path, "the images")
    if not root.is_dir():
        raise DataError(f"there is no directory with images at '{path}'")
    return root


def _depth(root: Path, files: Sequence[Path]) -> int:
    """Return the levels between root and images: 2 without domains, 3 with them."""
    depths = {len(path.relative_to(root).parts) for path in files}
    if not files:
        raise DataError(f"there are no images in '{root}' ({', '.join(SUFFIXES)})")
    if depths not in ({2}, {3}):
        raise DataError(
            f"the images in '{root}' must all lie in root/class/ or all in root/domain/class/, "
            f"got images {', '.join(map(str, sorted(depths)))} levels deep"
        )
    return depths.pop()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def file_bytes(path: Path) -> bytes:
    """Return what a file holds; nothing where it cannot be read, which the log then says."""
    try:
        return path.read_bytes()
    except OSError as error:
        log.warning("'%s' cannot be read: %s", path, error.strerror)
        return b""
