"""A directory of images: ``root/class/image`` or ``root/domain/class/image``.

Encoded images as tensors; what cannot be decoded is left out and counted.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyperlora.data.federation import DataError
from hyperlora.data.listing import Listing, Origin, Source, number_labels

log = logging.getLogger(__name__)


def read_images(samples: Iterable[tuple[bytes, int]], domain: str, image_size: int) -> Source:
    """Decode pairs of encoded image and label; the key of a sample is the hash of its bytes."""
    images, labels, keys, total = [], [], [], 0
    for encoded, label in samples:
        total += 1
        pixels = decode_image(encoded, image_size)
        if pixels is not None:
            images.append(pixels)
            labels.append(label)
            keys.append(hashlib.blake2b(encoded, digest_size=16).hexdigest())
    if len(images) < total:
        log.warning("%d of %d images of domain '%s' are unreadable and left out", total - len(images), total, domain)
    stacked = torch.stack(images) if images else torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
    return Source(stacked, torch.tensor(labels, dtype=torch.int64), keys)


def file_bytes(path: Path) -> bytes:
    """Return what is in a file; nothing, with a warning, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        log.warning("'%s' cannot be read: %s", path, error.strerror)
        return b""


def decode_image(encoded: bytes, image_size: int) -> Tensor | None:
    """Return an encoded image as RGB (3, image_size, image_size) uint8, or None if it is unreadable."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            resized = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ONE_DOMAIN = "all"


def list_folder(origin: Origin) -> Listing:
    """List a directory; images are decoded when a client is loaded.

    A class is a directory, also an empty one; hidden files are passed over. Without domains all images are of one
    domain, ``all``.

    Raises:
        DataError: the path is relative or missing, or holds no images two or three levels deep, or both.
    """
    root = _directory(origin.path)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not _hidden(path, root))
    depth = _depth(root, files)
    parts = [path.relative_to(root).parts for path in files]
    classes = origin.classes or tuple(sorted(_class_names(root, depth)))
    names, numbers = number_labels([part[-2] for part in parts], classes, str(root))
    domains: dict[str, list[int]] = {}
    for row, (part, number) in enumerate(zip(parts, numbers, strict=True)):
        if number >= 0:
            domains.setdefault(part[0] if depth == 3 else ONE_DOMAIN, []).append(row)

    def read(domain: str, rows: Sequence[int]) -> Source:
        return read_images(((file_bytes(files[row]), numbers[row]) for row in rows), domain, origin.image_size)

    return Listing(names, domains, numbers, read)


def _directory(path: str) -> Path:
    if not path:
        raise DataError("data.name is 'folder'; set data.path to the directory of the images")
    root = Path(path)
    if not root.is_absolute():
        raise DataError(f"the path of the images must be absolute, got '{path}'")
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


def _class_names(root: Path, depth: int) -> set[str]:
    return {path.name for path in root.glob("/".join("*" * (depth - 1))) if path.is_dir() and not _hidden(path, root)}


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
