"""Sizes as people write them: ``50000``, ``50k`` or ``1.5M`` bytes, k and M being powers of 1000."""

from __future__ import annotations

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6}


def parse_bytes(text: str) -> int:
    """Return the number of bytes.

    Raises:
        ValueError: it is no number above 0 with one of these units.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)b?", text.strip().lower())
    if not found or float(found[1]) * UNITS[found[2]] < 1:
        raise ValueError(f"expected a size as 50000, 50k or 1.5M, got '{text}'")
    return int(float(found[1]) * UNITS[found[2]])


def is_size(text: str) -> bool:
    """Tell whether :func:`parse_bytes` reads it."""
    try:
        return bool(parse_bytes(text))
    except ValueError:
        return False
