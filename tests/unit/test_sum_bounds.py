"""How many neighbours a client of a sum needs: the bounds against plain counting, and the numbers of the docs."""

from __future__ import annotations

from itertools import combinations, permutations
from math import log2

import pytest

from hyperlora.secure_sum import bounds
from hyperlora.secure_sum.bounds import (
    fewest_honest,
    least_agreed,
    log2_apart,
    log2_captured,
    log2_unanswered,
    neighbours_needed,
)


def test_the_tail_is_that_of_counting() -> None:
    drawn = list(combinations(range(9), 4))
    for least in range(5):
        share = sum(len({0, 1, 2} & set(one)) >= least for one in drawn) / len(drawn)
        found = 2.0 ** bounds._log2_tail(9, marked=3, drawn=4, least=least)
        assert found == pytest.approx(share)


def test_groups_beside_each_other_in_a_cycle_are_those_of_counting() -> None:
    one, other, orders = {0, 1}, {2, 3, 4}, [(*order, 6) for order in permutations(range(6))]
    apart = [
        not any({a, b} & one and {a, b} & other for a, b in zip(order, order[1:] + order[:1], strict=True))
        for order in orders
    ]
    found = 2.0 ** bounds._log2_never_beside(len(one), len(other), 2)
    assert found == pytest.approx(sum(apart) / len(orders))


def test_up_to_some_dozens_all_are_neighbours() -> None:
    assert all(neighbours_needed(count) == count - 1 for count in range(1, 41))
    assert neighbours_needed(60) < 59


@pytest.mark.parametrize("participants", [41, 60, 100, 200, 500])
def test_what_is_promised_of_a_sparse_graph(participants: int) -> None:
    degree = neighbours_needed(participants)
    assert degree < participants - 1
    assert log2_captured(participants, degree) <= -64
    assert log2_unanswered(participants, degree) <= -10
    assert log2_apart(participants, degree) <= -40
    assert fewest_honest(participants, degree) >= 6


def test_neighbours_grow_far_slower_than_participants() -> None:
    assert [neighbours_needed(count) for count in (50, 200, 1000, 10_000)] == [32, 86, 166, 224]


def test_a_third_may_drop_out_and_two_groups_that_agree_share_an_honest_client() -> None:
    for count in range(3, 1000):
        assert count - least_agreed(count) >= count // 3
        assert 2 * least_agreed(count) - count > bounds.corrupted(count)


def test_fewer_neighbours_would_not_do() -> None:
    degree = neighbours_needed(1000)
    assert any(log2_unanswered(1000, one) > -10 or log2_captured(1000, one) > -64 for one in (degree - 2, degree - 1))
    assert log2(1000) + bounds._log2_tail(999, 199, 60, 31) > -40
