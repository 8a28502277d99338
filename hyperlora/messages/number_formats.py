"""Number formats that adapters travel in: float32, float16, or int8 and int4 with a scale for every row (or column).

In the two integer formats an entry is round(value / scale), scale = max |row| / largest, and the rows run along the
longer of the last two axes, so that scales are few; they are float32. What has a generator is rounded up or down at
random so that the expectation is the value (QSGD, arXiv 1610.02132): errors of many clients average out, and nobody has
to keep what was rounded off. Two numbers of int4 lie in a byte.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

SCALE = ".scale"
LARGEST = {"int8": 127, "int4": 7}
"""The largest number of an integer format; there are as many below zero."""


def pack(tensors: Mapping[str, Tensor], wire: str, chance: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return what travels for float ``tensors``: of format ``wire``, for integers with ``<name>.scale`` beside each."""
    if wire not in LARGEST:
        return {name: tensor.to(getattr(torch, wire)) for name, tensor in tensors.items()}
    packed = {}
    for name, tensor in tensors.items():
        whole, packed[name + SCALE] = _quantized(tensor.float(), LARGEST[wire], chance)
        packed[name] = _in_pairs(whole) if wire == "int4" else whole
    return packed


def unpack(packed: Mapping[str, Tensor], wire: str, shapes: Shapes) -> dict[str, Tensor]:
    """Inverse of :func:`pack` for tensors of ``shapes``, up to rounding; float32."""
    if wire not in LARGEST:
        return {name: tensor.float() for name, tensor in packed.items()}
    whole = {
        name: _from_pairs(packed[name], shape) if wire == "int4" else packed[name] for name, shape in shapes.items()
    }
    return {name: one.float() * packed[name + SCALE] for name, one in whole.items()}


def packed_shapes(shapes: Shapes, wire: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of what :func:`pack` makes of tensors of ``shapes``."""
    if wire not in LARGEST:
        return {name: (shape, wire) for name, shape in shapes.items()}
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape in shapes.items():
        expected[name] = (((torch.Size(shape).numel() + 1) // 2,), "uint8") if wire == "int4" else (shape, "int8")
        expected[name + SCALE] = (_scale_shape(shape), "float32")
    return expected


def _quantized(tensor: Tensor, largest: int, chance: torch.Generator | None) -> tuple[Tensor, Tensor]:
    scale = tensor.abs().amax(dim=_axis(tensor.shape), keepdim=True) / largest
    exact = torch.where(scale > 0, tensor / scale, torch.zeros_like(tensor))
    noise = 0.5 if chance is None else torch.rand(exact.shape, generator=chance)
    return (exact + noise).floor().clamp(-largest, largest).to(torch.int8), scale


def _in_pairs(whole: Tensor) -> Tensor:
    """Return numbers of -7 to 7 as bytes, the first of a pair in the lower half."""
    flat = whole.flatten() + 8
    lower, upper = torch.nn.functional.pad(flat, (0, len(flat) % 2), value=8).to(torch.uint8).view(-1, 2).unbind(1)
    return lower | (upper << 4)


def _from_pairs(pairs: Tensor, shape: tuple[int, ...]) -> Tensor:
    flat = torch.stack([pairs & 15, pairs >> 4], dim=1).flatten()[: torch.Size(shape).numel()]
    return (flat.to(torch.int8) - 8).view(shape)


def _axis(shape: tuple[int, ...]) -> int:
    return -2 if len(shape) > 1 and shape[-2] > shape[-1] else -1


def _scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    scale = list(shape)
    scale[_axis(shape)] = 1
    return tuple(scale)
