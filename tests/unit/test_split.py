"""Parts by hash: stable, complete, and never empty where they need not be."""

import pytest

from hyperlora.data.federation import DataError
from hyperlora.data.plans import Parts, split_by_key
from hyperlora.seeds import unit_interval


def split(keys: list[str], validation: float = 0.15, test: float = 0.25) -> Parts:
    return split_by_key(keys, validation_fraction=validation, test_fraction=test, client_id="photo-3")


def keys_in(low: float, high: float, count: int) -> list[str]:
    drawn = (f"sample-{i}" for i in range(100_000))
    return [key for key in drawn if low <= unit_interval(key, "split") < high][:count]


def test_every_sample_is_in_exactly_one_part_of_about_its_share() -> None:
    parts = split([f"{i}" for i in range(4000)])
    assert sorted([*parts.train, *parts.validation, *parts.test]) == list(range(4000))
    assert [len(part) / 4000 for part in parts] == pytest.approx([0.6, 0.15, 0.25], abs=0.03)


def test_samples_stay_in_their_part_when_others_are_added_in_front() -> None:
    keys, added = [f"{i}" for i in range(200)], [f"new-{i}" for i in range(77)]
    before, after = split(keys), split(added + keys)
    for part, grown in zip(before, after, strict=True):
        assert {keys[i] for i in part} == {(added + keys)[i] for i in grown} - set(added)


def test_equal_keys_share_a_part() -> None:
    keys = [f"{i}" for i in range(50)]
    parts = split(keys * 2)
    for part in parts:
        assert {i % 50 for i in part if i < 50} == {i % 50 for i in part if i >= 50}


def test_an_empty_test_part_takes_the_lowest_sample_from_validation_before_train() -> None:
    validation, train = keys_in(0.25, 0.4, 2), keys_in(0.4, 1, 5)
    keys = train + validation
    parts = split(keys)
    lowest = min(validation, key=lambda key: unit_interval(key, "split"))
    assert [keys[i] for i in parts.test] == [lowest]
    assert sorted(parts.train) == list(range(5))


def test_empty_parts_take_the_lowest_train_samples() -> None:
    keys = keys_in(0.4, 1, 5)
    ranked = sorted(range(5), key=lambda i: unit_interval(keys[i], "split"))
    assert split(keys) == (sorted(ranked[2:]), [ranked[1]], [ranked[0]])


def test_a_fraction_of_zero_leaves_its_part_empty() -> None:
    parts = split(keys_in(0.4, 1, 4), validation=0.0, test=0.0)
    assert parts == ([0, 1, 2, 3], [], [])


@pytest.mark.parametrize("keys", [[], keys_in(0.4, 1, 2), keys_in(0, 0.25, 9)])
def test_a_client_without_train_samples_is_named(keys: list[str]) -> None:
    with pytest.raises(DataError, match=rf"client 'photo-3' has {len(keys)} samples, .* none to train on"):
        split(keys)


def test_purposes_are_independent() -> None:
    assert unit_interval("a", "split") != unit_interval("a", "public")
    assert 0 <= unit_interval("", "split") < 1
