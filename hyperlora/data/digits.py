"""The embedded data set: scikit-learn's 1,797 handwritten digits (8 x 8), shown in four domains.

A fixed half is public (:func:`digits_public`): a backbone may be pretrained on it and no client holds any of
it. Every digit of the other half appears once in each domain, transformed, at some client of that domain.
Its part (train, validation, test) follows from its own id, so a digit that is tested somewhere is trained on
by nobody in any domain, save where a client would otherwise have no test sample at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperlora.data.federation import DataError
from hyperlora.data.listing import Listing, Origin, Source
from hyperlora.seeds import unit_interval

PUBLIC_FRACTION = 0.5
MIN_IMAGE_SIZE = 8


def digits_public(image_size: int = 16) -> tuple[Tensor, Tensor]:
    """Return the public half, clean: images (n, 1, image_size, image_size) uint8 and labels (n,) int64."""
    images, labels = _all_digits(image_size)
    rows = [row for row in range(len(labels)) if _is_public(row)]
    return images[rows], labels[rows]


def digits_held_out(image_size: int, test_fraction: float = 0.25) -> tuple[Tensor, Tensor]:
    """Return the private digits of everybody's test part, clean, as :func:`digits_public` does.

    Args:
        image_size: side in pixels.
        test_fraction: what clients hold out (``data.test-fraction``).
    """
    images, labels = _all_digits(image_size)
    draws = {row: unit_interval(_key(row), "split") for row in range(len(labels)) if not _is_public(row)}
    rows = [row for row, draw in draws.items() if draw < test_fraction]
    return images[rows], labels[rows]


def list_digits(name: str, origin: Origin) -> Listing:
    """List the private half in every domain.

    Raises:
        DataError: if a path is given, or the images would be smaller than 8 px.
    """
    image_size = origin.image_size
    if origin.path:
        raise DataError(
            f"the data set 'digits' is embedded and takes no path, got '{origin.path}'; "
            "set data.name to 'folder', 'csv' or another kind of own data"
        )
    if image_size < MIN_IMAGE_SIZE:
        raise DataError(f"digits need at least {MIN_IMAGE_SIZE} px, got an image size of {image_size} px")
    images, labels = _all_digits(image_size)
    private = [row for row in range(len(labels)) if not _is_public(row)]

    def read(domain: str, rows: Sequence[int]) -> Source:
        chosen = list(rows)
        shown = DOMAINS[domain](images[chosen].float() / 255, chosen)
        return Source((shown * 255).round().clamp(0, 255).byte(), labels[chosen], [_key(r) for r in rows])

    names = tuple(str(digit) for digit in range(10))
    return Listing(names, dict.fromkeys(DOMAINS, private), labels.tolist(), read)


def _clean(images: Tensor, _rows: Sequence[int]) -> Tensor:
    """Show bright strokes on black, as scanned."""
    return images


def _inverted(images: Tensor, _rows: Sequence[int]) -> Tensor:
    """Show dark strokes on grey: inverted, at half the contrast, between 0.3 and 0.8."""
    return 0.8 - 0.5 * images


def _rotated(images: Tensor, _rows: Sequence[int]) -> Tensor:
    """Turn all digits by 40 degrees about their centre."""
    return turned(images, 40)


def _noisy(images: Tensor, rows: Sequence[int]) -> Tensor:
    """Blur twice by a mean over about a fifth of the side, then add noise (deviation 0.1) seeded by the digit."""
    reach = max(1, round(images.shape[-1] / 16))
    for _ in range(2):
        images = F.avg_pool2d(images, 2 * reach + 1, stride=1, padding=reach)
    generators = [torch.Generator().manual_seed(row) for row in rows]
    noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in generators])
    return images + 0.1 * noise


def turned(images: Tensor, degrees: float) -> Tensor:
    """Turn images (n, 1, h, w) about their centre."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


DOMAINS: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "clean": _clean,
    "inverted": _inverted,
    "rotated": _rotated,
    "noisy": _noisy,
}
"""Transformation of each domain: images (n, 1, h, w) in [0, 1] and their rows in the data set."""


@lru_cache(maxsize=4)
def _all_digits(image_size: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # brings scipy and pandas, which no other data set needs

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    large = F.interpolate(small, size=(image_size, image_size), mode="bicubic", align_corners=False)
    return (large.clamp(0, 1) * 255).round().byte(), torch.from_numpy(digits.target).long()


def _key(row: int) -> str:
    return f"digits/{row}"


def _is_public(row: int) -> bool:
    return unit_interval(_key(row), "public") < PUBLIC_FRACTION
