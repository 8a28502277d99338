"""States compared part by part, whatever types their mappings have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def same(left: Any, right: Any) -> bool:
    """Equal in type and value; tensors and floats bit for bit, mappings in their order whatever their type."""
    if isinstance(left, Tensor):
        alike = isinstance(right, Tensor) and (left.dtype, left.shape) == (right.dtype, right.shape)
        return alike and torch.equal(_bytes(left), _bytes(right))
    if isinstance(left, Mapping):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if type(left) is not type(right):
        return False
    if is_dataclass(left):
        return all(same(getattr(left, part.name), getattr(right, part.name)) for part in fields(left))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return math.isnan(left) == math.isnan(right) and (math.isnan(left) or repr(left) == repr(right))
    return bool(left == right)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield all tensors of a state."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from tensors_in(part)
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from tensors_in(getattr(tree, field.name))
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from tensors_in(part)
