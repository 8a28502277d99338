"""Gaussian noise for differential privacy: from the operating system at a site, from a seed in a simulation.

Two attacks on noise are known to work on ordinary code, and both are prevented here.

- The generator is guessed. torch's CPU generator keeps 32 bits of a seed, so that trying them all takes the noise off
  again. :func:`secret_noise` uses no generator: every number is made of fresh bytes of the operating system.
- The low bits tell the value (Mironov, "On significance of the least significant bits for differential privacy", 2012):
  a float sampler cannot reach every number, and what it cannot reach depends on the value that the noise is added to.
  :func:`noised` adds in float64 and rounds to a fixed grid 2^-16 times as fine as the noise, and each number of
  :func:`secret_noise` is the sum of four (Holohan and Braghin, "Secure random sampling in differential privacy", 2021),
  so that a point of the grid can be reached from every value, and in far more ways than anyone can count through.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Draw = Callable[[Sequence[int]], Tensor]
"""Returns independent standard normal numbers of a shape, others at every call."""
SUMMED, BITS, GRID = 4, 52, 2.0**-16


def secret_noise(shape: Sequence[int]) -> Tensor:
    """Return standard normal float64 numbers of ``shape`` that nobody can draw again.

    A uniform number is (k + 1/2) / 2^52 for 52 bits k of ``os.urandom``; the inverse of the normal distribution makes
    it normal; the sum of four of them is divided by 2.
    """
    count = math.prod(shape)
    if not count:
        return torch.zeros(*shape, dtype=torch.float64)
    words = torch.frombuffer(bytearray(os.urandom(8 * SUMMED * count)), dtype=torch.int64)
    uniform = ((words & (2**BITS - 1)).double() + 0.5) / 2**BITS
    normal: Tensor = torch.special.ndtri(uniform).reshape(SUMMED, *shape).sum(dim=0) / math.sqrt(SUMMED)
    return normal


def simulated_noise(seed: int) -> Draw:
    """Return a draw that ``seed`` repeats, for a simulation, which has nobody to hide from; it protects nothing."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(*shape, generator=generator).double()


def noised(value: Tensor, scale: float, draw: Draw) -> Tensor:
    """Return ``value`` plus noise of standard deviation ``scale``, as float32 on a grid that ``scale`` alone decides.

    Raises:
        ValueError: a number of ``value`` is NaN or infinite, which no noise hides.
    """
    if not bool(torch.isfinite(value).all()):
        raise ValueError("noise cannot protect what is not finite, got NaN or infinity")
    if not scale:
        return value.float()
    step = 2.0 ** math.floor(math.log2(scale * GRID))
    return ((value.double() + scale * draw(value.shape)) / step).round().mul(step).float()
