from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bootstrap import COMPARISONS, Difference, bootstrap_means, interval_table, paired_difference
from benchmarks.pages import of_one_fingerprint


def run(seed: int, received: list[float], adapted: list[float], **more: str) -> dict:
    clients = [
        {"client_id": f"c{index}", "track": "start", "seen": True, "zero_step": zero, "k_step": after}
        for index, (zero, after) in enumerate(zip(received, adapted, strict=True))
    ]
    return {"seed": seed, "clients": clients, **more}


def test_means_have_the_spread_of_seeds_and_of_clients() -> None:
    parts = [np.full(7, 0.0), np.full(3, 1.0)]
    drawn = bootstrap_means(parts)
    assert set(np.unique(drawn)) == {0.0, 0.5, 1.0}
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.02)
    own = np.random.default_rng(1).normal(size=50)
    assert bootstrap_means([own]).std() == pytest.approx(own.std() / 50**0.5, rel=0.05)


def test_differences_are_paired_by_client_and_seed() -> None:
    left = [run(0, [0.5, 0.9], [0.6, 0.8]), run(1, [0.4, 0.6], [0.5, 0.7]), run(9, [0.0, 0.0], [0.0, 0.0])]
    right = [run(1, [0.3, 0.5], [0.6, 0.8]), run(0, [0.4, 0.8], [0.7, 0.9])]
    same = paired_difference(left, right, "seen", ("zero_step", "zero_step"))
    assert same is not None
    assert (same.mean, same.low, same.high) == pytest.approx((10.0, 10.0, 10.0))
    assert (same.seeds, same.verdict) == (2, "above")
    crossed = paired_difference(left, right, "seen", ("zero_step", "k_step"))
    assert crossed is not None
    assert crossed.mean == pytest.approx(-15.0)
    assert crossed.low < -15.0 < crossed.high
    assert paired_difference(left, right, "unseen", ("zero_step", "zero_step")) is None


def test_a_table_says_level_where_the_interval_holds_zero() -> None:
    found = {"a": [run(0, [0.5, 0.5], [0.5, 0.5])], "b": [run(0, [0.6, 0.4], [0.7, 0.6])]}
    row = interval_table(found, ["a", "b"], "a").splitlines()[2]
    assert row.startswith("| b | +0.0 [-10.0, +10.0], level | +15.0 [+10.0, +20.0] | ")
    assert interval_table(found, ["a", "b"], "c") == ""


def test_the_crossed_column_of_a_table_is_the_verdicts_comparison_with_the_sign_turned() -> None:
    found = {"a": [run(0, [0.5, 0.5], [0.9, 0.9])], "b": [run(0, [0.1, 0.1], [0.3, 0.3])]}
    row = interval_table(found, ["a", "b"], "a").splitlines()[2]
    crossed = paired_difference(found["a"], found["b"], "seen", COMPARISONS["as received against adapted"])
    assert crossed is not None
    assert crossed.mean == pytest.approx(20.0)
    assert row.split(" | ")[3] == "-20.0 [-20.0, -20.0]"


def test_an_end_that_is_printed_as_zero_is_level() -> None:
    assert Difference(1.0, 0.04, 2.0, 3).verdict == "level"
    assert Difference(1.0, 0.06, 2.0, 3).verdict == "above"
    assert Difference(-1.0, -2.0, -0.04, 3).verdict == "level"


def test_a_table_has_runs_of_one_fingerprint_only_and_says_which_rows_are_left_out() -> None:
    one = {"a": [run(0, [], [])], "b": [run(0, [], [], fingerprint="f")], "c": [run(0, [], [], fingerprint="f")]}
    kept, note = of_one_fingerprint(one)
    assert sorted(kept) == ["b", "c"]
    assert note == "Made by the product code f; not shown, as of other code: a."
    old = {"a": one["a"]}
    assert of_one_fingerprint(old) == (old, "")
    dirty = {"a": [{**run(0, [], []), "fingerprint": "f", "dirty": True}]}
    assert of_one_fingerprint(dirty)[1] == "Made by the product code f, which was not committed."
