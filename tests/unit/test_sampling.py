from __future__ import annotations

import pytest

from strategies.engine.history import sample_cohort
from strategies.engine.records import spread

NAMES = [f"client-{index}" for index in range(20)]


def test_cohorts_depend_on_names_seed_and_round_alone() -> None:
    cohort = sample_cohort(NAMES, 5, seed=1, server_round=3)
    assert cohort == sample_cohort(reversed(NAMES), 5, seed=1, server_round=3) == sorted(cohort)
    assert cohort != sample_cohort(NAMES, 5, seed=1, server_round=4)
    assert cohort != sample_cohort(NAMES, 5, seed=2, server_round=3)


def test_everybody_is_drawn_in_time() -> None:
    drawn = {name for index in range(60) for name in sample_cohort(NAMES, 5, seed=0, server_round=index)}
    assert drawn == set(NAMES)


def test_fewer_clients_than_asked_for_all_take_part() -> None:
    assert sample_cohort(NAMES[:3], 5, seed=0, server_round=1) == NAMES[:3]


def test_spread() -> None:
    figures = spread([1.0] * 18 + [0.0, 0.5])
    assert figures["mean"] == pytest.approx(18.5 / 20)
    assert figures["worst_tenth"] == pytest.approx(0.25)
