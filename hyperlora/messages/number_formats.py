"""Number formats that adapters travel in: float32, float16, or int8 and int4 with a scale for every row (or column).

In the two integer formats an entry is round(value / scale), scale = max |row| / largest, and the rows run along the
longer of the last two axes, so that scales are few; they are float32. What has a generator is rounded up or down at
random so that the expectation is the value (QSGD, arXiv 1610.02132): errors of many clients average out, and nobody has
to keep what was rounded off. Two numbers of int4 lie in a byte.

A head is int8 in both, and its last column, the bias, float32: with a client's log frequencies in it the bias is many
times larger than the weights, which would be rounded to its scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.adapters.adapter import HEAD

Shapes = Mapping[str, tuple[int, ...]]

SCALE, BIAS = ".scale", f"{HEAD}.bias"
LARGEST = {"int8": 127, "int4": 7}
"""The largest number of an integer format; there are as many below zero."""


def pack(tensors: Mapping[str, Tensor], wire: str, chance: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return what travels for float ``tensors``: of format ``wire``, for integers with ``<name>.scale`` beside each.

    Args:
        tensors: the parts of an adapter by name, of any shape; the head is (classes, width + 1), its bias last.
        wire: ``float32``, ``float16``, ``int8`` or ``int4``.
        chance: for rounding at random; None rounds to the nearest.
    """
    if wire not in LARGEST:
        return {name: tensor.to(getattr(torch, wire)) for name, tensor in tensors.items()}
    packed = {}
    for name, tensor in tensors.items():
        values, own = tensor.float(), _format_of(name, wire)
        if name == HEAD:
            values, packed[BIAS] = values[:, :-1], values[:, -1].contiguous()
        whole, packed[name + SCALE] = _quantized(values, LARGEST[own], chance)
        packed[name] = _in_pairs(whole) if own == "int4" else whole
    return packed


def unpack(packed: Mapping[str, Tensor], wire: str, shapes: Shapes) -> dict[str, Tensor]:
    """Inverse of :func:`pack` for tensors of ``shapes``, up to rounding; float32."""
    if wire not in LARGEST:
        return {name: tensor.float() for name, tensor in packed.items()}
    tensors = {}
    for name, shape in shapes.items():
        whole = _from_pairs(packed[name], shape) if _format_of(name, wire) == "int4" else packed[name]
        values = whole.float() * packed[name + SCALE]
        tensors[name] = torch.cat([values, packed[BIAS][:, None]], dim=1) if name == HEAD else values
    return tensors


def packed_shapes(shapes: Shapes, wire: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> (shape, dtype) of what :func:`pack` makes of tensors of ``shapes``."""
    if wire not in LARGEST:
        return {name: (shape, wire) for name, shape in shapes.items()}
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, whole in shapes.items():
        shape, pairs = whole, _format_of(name, wire) == "int4"
        if name == HEAD:
            shape, expected[BIAS] = (whole[0], whole[1] - 1), (whole[:1], "float32")
        expected[name] = (((torch.Size(shape).numel() + 1) // 2,), "uint8") if pairs else (shape, "int8")
        expected[name + SCALE] = (_scale_shape(shape), "float32")
    return expected


def _format_of(name: str, wire: str) -> str:
    return "int8" if name == HEAD else wire


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
