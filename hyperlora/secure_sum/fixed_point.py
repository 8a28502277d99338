"""Tensors as integers that can be added under masks: fixed point modulo 2^32, of bounds that all parties know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.uint32]
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Part:
    """One tensor of what clients tell: its shape, and the largest absolute value of an entry; more is cut off."""

    shape: tuple[int, ...]
    bound: float


@dataclass(frozen=True)
class FixedPoint:
    """How named tensors are laid out in one vector of integers.

    Attributes:
        parts: name -> shape and bound, in the order of the vector.
        clients: most clients of a sum, so that no sum overflows. A step is ``bound * clients / 2^31``.
    """

    parts: Mapping[str, Part]
    clients: int

    @property
    def length(self) -> int:
        """Entries of the vector."""
        return sum(int(np.prod(part.shape)) for part in self.parts.values())

    def encode(self, tensors: Mapping[str, Tensor]) -> Vector:
        """Return the vector of a client's tensors.

        Raises:
            ValueError: a tensor is missing, has another shape, or is not finite.
        """
        if tensors.keys() != self.parts.keys():
            raise ValueError(f"expected the tensors {sorted(self.parts)}, got {sorted(tensors)}")
        pieces = [self._encoded(name, tensors[name].detach().double().cpu()) for name in self.parts]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)

    def _encoded(self, name: str, tensor: Tensor) -> Vector:
        part = self.parts[name]
        if tuple(tensor.shape) != part.shape:
            raise ValueError(f"expected '{name}' of shape {part.shape}, got {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"'{name}' is not finite, so that it cannot be added to others'")
        steps = (tensor.clamp(-part.bound, part.bound) * self._scale(part)).round()
        return steps.to(torch.int64).flatten().numpy().astype(np.uint32)

    def decode(self, total: Vector) -> dict[str, Tensor]:
        """Return the sums of the tensors, float64, from the sum of vectors modulo 2^32."""
        numbers = torch.from_numpy(total.view(np.int32).astype(np.float64))
        pieces = torch.split(numbers, [int(np.prod(part.shape)) for part in self.parts.values()])
        named = zip(self.parts.items(), pieces, strict=True)
        return {name: (piece / self._scale(part)).reshape(part.shape) for (name, part), piece in named}

    def _scale(self, part: Part) -> float:
        return (LARGEST // self.clients) / part.bound
