"""The parts of one client's samples: train, validation and test, by a hash of each sample's own key.

A sample stays in its part when other samples are added or the division over clients changes, and samples
with equal keys fall into the same part, save where a part would otherwise be empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from data.federation import DataError


class Parts(NamedTuple):
    """Positions of the samples of each part, ascending; together each position once."""

    train: list[int]
    validation: list[int]
    test: list[int]


def unit_interval(key: str, purpose: str) -> float:
    """Return a number in [0, 1) that depends on ``key`` and ``purpose`` only, as if drawn uniformly."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=purpose.encode()[:16]).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def split_by_key(keys: Sequence[str], *, validation_fraction: float, test_fraction: float, client_id: str) -> Parts:
    """Divide samples by u = unit_interval(key): test below ``test_fraction``, validation next, then train.

    A part with a fraction above 0 that no sample falls into takes the sample of lowest u from the parts
    after it, so an empty test part takes from validation before it takes from train.

    Raises:
        DataError: naming the client, if it has no samples or none is left to train on.
    """
    draws = [unit_interval(key, "split") for key in keys]
    order = sorted(range(len(keys)), key=lambda position: (draws[position], keys[position], position))
    num_test = sum(draw < test_fraction for draw in draws)
    num_held_out = sum(draw < test_fraction + validation_fraction for draw in draws)
    if test_fraction > 0:
        num_test = max(num_test, 1)
    num_held_out = max(num_held_out, num_test + (validation_fraction > 0 and num_held_out <= num_test))
    if num_held_out >= len(keys):
        raise DataError(f"client '{client_id}' has {len(keys)} samples, which leaves none to train on")
    train, validation, test = order[num_held_out:], order[num_test:num_held_out], order[:num_test]
    return Parts(sorted(train), sorted(validation), sorted(test))
