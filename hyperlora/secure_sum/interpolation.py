"""Shamir's secrets from their shares, in the field of 2^128 elements that pycryptodome shares in.

The server alone does this, with what it was told, and compares what comes out with a published digest or key, so that a
wrong result cannot go unnoticed. pycryptodome's ``Shamir.combine`` gives the same in some thirty times the time.

An element is an integer whose bits are coefficients of a polynomial over two elements. Small ones are multiplied with
four bits for each coefficient: Python's product of such integers is theirs, once each coefficient is taken modulo 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from operator import xor

BITS, FOLD = 128, 0b10000111
"""Elements are taken modulo x^128 + x^7 + x^2 + x + 1."""
MOST_POINT = 2**15 - 1
"""A point has 15 bits at most, so that no coefficient of a product with one is above what four bits hold."""


def values_at_zero(points: Sequence[int], values: Sequence[Sequence[int]]) -> list[int]:
    """Return what polynomials are at 0: sum_j y_j prod_{m != j} x_m / (x_j + x_m).

    Args:
        points: (t,) x_j.
        values: (p, t) y_j of p polynomials of degree t - 1.

    Raises:
        ValueError: a point is none, or comes twice.
    """
    if len(set(points)) != len(points) or not all(0 < point <= MOST_POINT for point in points):
        raise ValueError("the points of shares must be different numbers from 1 to 32767")
    weights = [_inverse(_product([own, *(own ^ other for other in points if other != own)])) for own in points]
    every = _product(points)
    return [_times(every, _sum(_times(weight, y) for weight, y in zip(weights, one, strict=True))) for one in values]


def _sum(elements: Iterable[int]) -> int:
    return reduce(xor, elements, 0)


def _product(points: Sequence[int]) -> int:
    """Return the product of small elements."""
    ones, found = int("1" * (15 * len(points) + 1), 16), 1
    for point in points:
        found = found * _spread(point) & ones
    return _reduced(int(f"{found:x}", 2))


@lru_cache(maxsize=MOST_POINT)
def _spread(point: int) -> int:
    return int(f"{point:b}", 16)


def _reduced(polynomial: int) -> int:
    while high := polynomial >> BITS:
        polynomial = (polynomial & ((1 << BITS) - 1)) ^ high ^ (high << 1) ^ (high << 2) ^ (high << 7)
    return polynomial


def _times(one: int, other: int) -> int:
    found = 0
    while other:
        if other & 1:
            found ^= one
        one, other = one << 1, other >> 1
    return _reduced(found)


def _inverse(element: int) -> int:
    """Return 1 / element, by Euclid's algorithm."""
    left, right = element, (1 << BITS) | FOLD
    of_left, of_right = 1, 0
    while left != 1:
        shift = left.bit_length() - right.bit_length()
        if shift < 0:
            left, right, of_left, of_right, shift = right, left, of_right, of_left, -shift
        left, of_left = left ^ (right << shift), of_left ^ (of_right << shift)
    return _reduced(of_left)
