"""Tensors as one vector of integers that no client can move by more than a public length, each with its share of noise.

The sum over clients is a Gaussian mechanism at the level of a client (Dwork and Roth 2014, appendix A): a client's
tensors are put into one vector, shortened to length 1 and cut to integers towards zero, which makes nothing longer.
Every client adds Gaussian noise, rounded to integers, of variance z^2 / t, so that a sum with t of them in it has z^2
or more and nobody has to be trusted with all of it (Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian
mechanism"; a standard deviation is tens of thousands of steps here, so that what rounding adds to the privacy loss is
negligible). What the noise is proven to hide is whether a client told its answer or nothing but zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hyperlora.noise import Draw
from hyperlora.secure_sum.fixed_point import LARGEST, Vector

HEADROOM = 16.0
"""How many standard deviations of the noise a sum has room for."""


@dataclass(frozen=True)
class Unit:
    """One tensor of what clients tell: its shape, and what of it has length 1."""

    shape: tuple[int, ...]
    length: float


def needed(clients: int, share: float) -> int:
    """Return how many of so many clients must be in a noised sum: what each adds is enough for that many."""
    return max(1, math.ceil(share * clients - 1e-9))


@dataclass(frozen=True)
class NoisedVector:
    """How named tensors are laid out in one vector of integers that gets noise.

    Attributes:
        units: name -> shape and unit, in the order of the vector.
        clients: most clients of a sum.
        noise: z, standard deviation of the noise of a sum of ``share * clients`` clients; a client counts 1.
        share: least share of the clients that are in a sum.
    """

    units: Mapping[str, Unit]
    clients: int
    noise: float
    share: float

    @property
    def length(self) -> int:
        """Entries of the vector."""
        return sum(math.prod(unit.shape) for unit in self.units.values())

    @property
    def steps(self) -> int:
        """Integers for a length of 1."""
        return int(LARGEST / (self.clients + HEADROOM * self.noise / self.share**0.5))

    def encode(self, tensors: Mapping[str, Tensor], draw: Draw, participants: int) -> Vector:
        """Return the vector of a client's tensors with its share of the noise.

        Args:
            tensors: by name.
            draw: makes standard normal numbers.
            participants: clients of the sum as this client knows them, at most ``clients``.

        Raises:
            ValueError: a tensor is missing, has another shape, or is not finite.
        """
        if tensors.keys() != self.units.keys():
            raise ValueError(f"expected the tensors {sorted(self.units)}, got {sorted(tensors)}")
        told = torch.cat([_in_units(name, tensors[name], unit) for name, unit in self.units.items()])
        told = told / told.norm().clamp(min=1.0)
        own = self.noise / needed(participants, self.share) ** 0.5
        steps = (told * self.steps).trunc() + (own * self.steps * draw([len(told)])).round()
        vector: Vector = steps.to(torch.int64).numpy().astype(np.uint32)
        return vector

    def decode(self, total: Vector) -> dict[str, Tensor]:
        """Return the sums of the tensors, float64, from the sum of vectors modulo 2^32."""
        numbers = torch.from_numpy(total.view(np.int32).astype(np.float64)) / self.steps
        pieces = torch.split(numbers, [math.prod(unit.shape) for unit in self.units.values()])
        named = zip(self.units.items(), pieces, strict=True)
        return {name: (piece * unit.length).reshape(unit.shape) for (name, unit), piece in named}


def _in_units(name: str, tensor: Tensor, unit: Unit) -> Tensor:
    if tuple(tensor.shape) != unit.shape:
        raise ValueError(f"expected '{name}' of shape {unit.shape}, got {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"'{name}' is not finite, so that it cannot be added to others'")
    return tensor.detach().double().cpu().flatten() / unit.length
