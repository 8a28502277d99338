"""How numbers travel: as float32, as float16, or as int8 with a float32 scale for every row (or column).

int8: an entry is round(value / scale), scale = max |row| / 127, and the rows run along the longer of the last two axes,
so that scales are few. What has a generator is rounded up or down at random so that the expectation is the value
(QSGD, arXiv 1610.02132): errors of many clients average out, and nobody has to keep what was rounded off.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WIRE_DTYPES = ("float32", "float16", "int8")
SCALE = ".scale"
LARGEST = 127

Shapes = Mapping[str, tuple[int, ...]]


def pack(tensors: Mapping[str, Tensor], wire: str, chance: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return what travels for float ``tensors``: of dtype ``wire``, for int8 with ``<name>.scale`` beside each."""
    if wire != "int8":
        return {name: tensor.to(getattr(torch, wire)) for name, tensor in tensors.items()}
    packed = {}
    for name, tensor in tensors.items():
        packed[name], packed[name + SCALE] = _quantized(tensor.float(), chance)
    return packed


def unpack(packed: Mapping[str, Tensor], wire: str) -> dict[str, Tensor]:
    """Inverse of :func:`pack` up to rounding; float32."""
    if wire != "int8":
        return {name: tensor.float() for name, tensor in packed.items()}
    names = [name for name in packed if not name.endswith(SCALE)]
    return {name: packed[name].float() * packed[name + SCALE] for name in names}


def packed_shapes(shapes: Shapes, wire: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of what :func:`pack` makes of tensors of ``shapes``."""
    if wire != "int8":
        return {name: (shape, wire) for name, shape in shapes.items()}
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape in shapes.items():
        expected[name] = (shape, "int8")
        expected[name + SCALE] = (_scale_shape(shape), "float32")
    return expected


def _quantized(tensor: Tensor, chance: torch.Generator | None) -> tuple[Tensor, Tensor]:
    scale = tensor.abs().amax(dim=_axis(tensor.shape), keepdim=True) / LARGEST
    exact = torch.where(scale > 0, tensor / scale, torch.zeros_like(tensor))
    noise = 0.5 if chance is None else torch.rand(exact.shape, generator=chance)
    return (exact + noise).floor().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def _axis(shape: tuple[int, ...]) -> int:
    return -2 if len(shape) > 1 and shape[-2] > shape[-1] else -1


def _scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    scale = list(shape)
    scale[_axis(shape)] = 1
    return tuple(scale)
