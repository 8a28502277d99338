"""Secrets from shares: what pycryptodome makes of them, and nothing of shares that are none."""

from __future__ import annotations

import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlora.secure_sum import keys
from hyperlora.secure_sum.interpolation import MOST_POINT, values_at_zero


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, MOST_POINT), min_size=1, max_size=6), st.data())
def test_values_at_zero_are_those_of_pycryptodome(points: set[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(sorted(points)))
    values = data.draw(st.lists(st.integers(0, 2**128 - 1), min_size=len(order), max_size=len(order)))
    shares = [(x, y.to_bytes(16, "big")) for x, y in zip(order, values, strict=True)]
    assert values_at_zero(order, [values])[0].to_bytes(16, "big") == Shamir.combine(shares, ssss=False)


def test_enough_shares_give_the_secret_in_any_order() -> None:
    secret = keys.fresh_seed()
    shares = keys.split_secret(secret, threshold=4, count=7)
    assert keys.join_secret(shares[3:]) == keys.join_secret(shares[3::-1]) == secret
    assert keys.join_secret(shares[:3]) != secret


@pytest.mark.parametrize("points", [[1, 1], [0, 2], [1, 2**15]])
def test_points_that_are_none_are_refused(points: list[int]) -> None:
    with pytest.raises(ValueError, match="must be different numbers from 1"):
        values_at_zero(points, [[5, 6]])
