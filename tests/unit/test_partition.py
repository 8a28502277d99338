"""The division of one domain: complete, disjoint, seeded, and skewed as asked."""

from dataclasses import replace

import numpy as np
import pytest

from hyperlora.data.federation import DataError, Division
from hyperlora.data.listing import Origin
from hyperlora.data.opening import open_federation
from hyperlora.data.partition import divide_domain
from hyperlora.data.plans import plan_clients, safe_id

LABELS = [i % 7 for i in range(700)]


def divide(alpha: float, seed: int = 0, domain: str = "photo", clients: int = 5) -> list[list[int]]:
    return divide_domain(LABELS, domain, Division(seed, clients, alpha, 0.0, 0.1, 0.1))


def class_counts(part: list[int]) -> np.ndarray:
    return np.bincount([LABELS[i] for i in part], minlength=7)


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 100.0])
def test_every_position_goes_to_exactly_one_client_of_enough(alpha: float) -> None:
    parts = divide(alpha)
    assert sorted(position for part in parts for position in part) == list(range(700))
    assert len(parts) == 5
    assert min(map(len, parts)) >= 20


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_the_division_follows_seed_and_domain(alpha: float) -> None:
    assert divide(alpha) == divide(alpha)
    assert divide(alpha) != divide(alpha, seed=1)
    assert divide(alpha) != divide(alpha, domain="sketch")


def test_alpha_zero_gives_equal_shares_of_every_class() -> None:
    counts = np.stack([class_counts(part) for part in divide(0)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1


def test_a_smaller_alpha_is_more_skewed() -> None:
    def largest_share(alpha: float) -> float:
        return float(np.mean([class_counts(p).max() / len(p) for p in divide(alpha)]))

    assert largest_share(0.1) > largest_share(1.0) > largest_share(100.0)


def test_too_few_samples_are_told_in_numbers() -> None:
    with pytest.raises(DataError, match=r"domain 'photo' has 700 samples, too few for 36 clients .* 20 each"):
        divide(0.5, clients=36)


def test_an_impossible_skew_is_told_in_numbers() -> None:
    with pytest.raises(DataError, match=r"alpha 0.001 .* 12 clients 20 of the 700 samples of domain 'photo'"):
        divide(0.001, clients=12)


def test_plans_cover_each_domain_and_leave_out_its_last_clients() -> None:
    domains = {"b": range(350), "a": range(350, 700)}
    plans = plan_clients(domains, LABELS, Division(0, 5, 0.5, 0.4, 0.1, 0.1))
    assert list(plans) == [f"{domain}-{k}" for domain in "ab" for k in range(5)]
    assert [plans[f"a-{k}"].trains for k in range(5)] == [True, True, True, False, False]
    for domain, rows in domains.items():
        held = [row for plan in plans.values() if plan.domain == domain for row in plan.rows]
        assert sorted(held) == list(rows)


def test_iid_clients_have_the_classes_of_their_domain_and_pathological_ones_a_few() -> None:
    domains = {"a": range(700)}
    alike = plan_clients(domains, LABELS, Division(0, 5, 0.5, 0.4, 0.1, 0.1, partition="iid"))
    assert [len(plan.rows) for plan in alike.values()] == [140] * 5
    assert all(min(class_counts(list(plan.rows))) >= 8 for plan in alike.values())
    few = plan_clients(domains, LABELS, Division(0, 5, 0.5, 0.4, 0.1, 0.1, partition="pathological"))
    assert [int((class_counts(list(plan.rows)) > 0).sum()) for plan in few.values()] == [2] * 5
    rows = [row for plan in few.values() for row in plan.rows]
    assert len(set(rows)) == len(rows)
    with pytest.raises(DataError, match="cannot be divided over 5 clients of 9 classes each"):
        plan_clients(domains, LABELS, Division(0, 5, 0.5, 0, 0.1, 0.1, partition="pathological", classes_per_client=9))


def test_natural_domains_are_clients_and_some_never_train() -> None:
    domains = {f"site {k}": range(100 * k, 100 * k + 100) for k in range(5)}
    plans = plan_clients(domains, LABELS, Division(0, 1, 0.5, 0.4, 0.1, 0.1, partition="natural"))
    assert list(plans) == [f"site_{k}" for k in range(5)]
    assert sum(plan.trains for plan in plans.values()) == 3
    assert plans["site_2"].rows == tuple(range(200, 300))


def test_domains_whose_clients_would_have_one_id_are_told() -> None:
    with pytest.raises(DataError, match="domains 'a b' and 'a_b' would have the same client ids"):
        plan_clients({"a b": range(50), "a_b": range(50, 99)}, LABELS, Division(0, 1, 0, 0, 0.1, 0.1))


def test_a_domain_of_any_name_gives_a_file_name() -> None:
    assert [safe_id(name) for name in ("a/b c", "../x", "..", ".git", "v1.2")] == ["a_b_c", "__x", "_", "_git", "v1.2"]


def test_a_cap_takes_the_same_samples_each_time() -> None:
    whole, capped, again = (
        plan_clients({"a": range(700)}, LABELS, Division(0, 5, 0.5, 0, 0.1, 0.1, max_samples=limit))
        for limit in (0, 30, 30)
    )
    assert capped == again
    assert {len(plan.rows) for plan in capped.values()} == {30}
    assert all(set(capped[name].rows) <= set(whole[name].rows) for name in whole)


VALID = Division(0, 5, 0.5, 0.2, 0.15, 0.25)


@pytest.mark.parametrize(
    ("name", "origin", "sentence"),
    [
        ("cifar", Origin(), "there is no data set 'cifar'; known are cifar100, csv, "),
        ("digits", Origin("/data"), "'digits' is embedded and takes no path, got '/data'"),
        ("digits", Origin("", 4), "at least 8 px, got an image size of 4 px"),
    ],
)
def test_wrong_origins_are_told_in_one_sentence(name: str, origin: Origin, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_federation(name, origin, VALID)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"validation_fraction": 0.75}, "leave nothing to train on"),
        ({"unseen_fraction": 0.95}, "leaves none of 5 clients per domain to train"),
    ],
)
def test_impossible_divisions_are_told_in_one_sentence(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        replace(VALID, **change)  # type: ignore[arg-type]
