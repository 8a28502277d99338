"""Encoded images as tensors; what cannot be decoded is left out and counted."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.listing import Source

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
