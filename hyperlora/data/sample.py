"""Digits as no client of the embedded federation shows them, as a folder of images: own data for whoever has none.

They are the digits that every client keeps for its test, whatever its domain: no backbone and no client was trained on
any of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hyperlora.data.digits import digits_held_out, turned
from hyperlora.data.federation import DataError
from hyperlora.storage.files import write_bytes

SIDE = 32


def _ink(images: Tensor) -> Tensor:
    """Show dark ink on grey paper, leaning by 40 degrees: two domains of the federation at once."""
    return 0.8 - 0.5 * turned(images, 40)


def _backwards(images: Tensor) -> Tensor:
    """Lean by 40 degrees to the side that no client's digits lean to."""
    return turned(images, -40)


def _bold(images: Tensor) -> Tensor:
    """Write with a stroke twice as broad, on grey."""
    return 0.3 + 0.5 * F.max_pool2d(images, SIDE // 8 + 1, stride=1, padding=SIDE // 16)


def _paper(images: Tensor) -> Tensor:
    """Show black strokes on white."""
    return 1 - images


STYLES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "ink": _ink,
    "backwards": _backwards,
    "bold": _bold,
    "paper": _paper,
}
"""How digits are shown: images (n, 1, h, w) in [0, 1], bright strokes on black, to images of the style."""


def sample_images(style: str) -> list[tuple[bytes, int]]:
    """Return the digits of a style as PNG files with their labels; raises DataError for one that is not there."""
    if style not in STYLES:
        raise DataError(f"there is no style of digits '{style}': choose one of {', '.join(STYLES)}")
    images, labels = digits_held_out(SIDE)
    shown = (STYLES[style](images.float() / 255) * 255).round().clamp(0, 255).byte()
    return [(_png(image), label) for image, label in zip(shown, labels.tolist(), strict=True)]


def write_sample(root: Path, style: str = "ink") -> None:
    """Write the digits of a style as ``root/<digit>/<number>.png``.

    Raises:
        DataError: something is at ``root``, or there is no such style.
        StorageError: it cannot be written.
    """
    if root.exists():
        raise DataError(f"'{root}' is there already: leave out --sample to use it, or name another directory")
    for number, (encoded, label) in enumerate(sample_images(style)):
        write_bytes(root / str(label) / f"{number}.png", encoded, durable=False)


def _png(image: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(stream, format="png")
    return stream.getvalue()
