"""Whom a head leans on is what the generator really uses: moving a client's classes moves the head's by its weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.personalization.class_means import Block, Variances
from models.personalization.head_generator import HeadGenerator
from models.personalization.leaning import leaning
from tests.unit.test_head_generator import CLASSES, DISTANCES, STATISTICS, client

VARIANCES = Variances(0.1, 0.3, 1.0)
NEW = torch.tensor([0.1, 0.05, 1.5, 3.0, 4.0])
OWN = client(9, (4, 0, 2))


def generator_of(moved: str = "", by: float = 0.0) -> HeadGenerator:
    """Return a generator of these variances, with all class means of one client moved."""
    fitted = HeadGenerator.fit(STATISTICS, DISTANCES)
    observed = fitted.observed
    rows = observed.client == (list(fitted.names).index(moved) if moved else -1)
    observed = replace(observed, means=observed.means + by * rows[:, None])
    distances = DISTANCES[: len(fitted.names), : len(fitted.names)].double()
    blocks = [Block.of(torch.arange(CLASSES), observed, VARIANCES, distances)]
    return replace(fitted, variances=VARIANCES, observed=observed, blocks=blocks)


@pytest.mark.parametrize("own", [None, OWN], ids=["without statistics", "with its own"])
@pytest.mark.parametrize("name", STATISTICS)
def test_expected_means_follow_a_client_by_its_weight(name: str, own: object) -> None:
    plain, shifted = generator_of(), generator_of(name, by=0.5)
    distances, heard = plain.heard("new", NEW, own)
    moved = shifted.expected_means(distances, heard) - plain.expected_means(distances, heard)
    assert float(moved.mean()) == pytest.approx(0.5 * leaning(plain, "new", NEW, own).others[name], abs=1e-9)


def test_expected_means_follow_the_own_classes_by_their_weight() -> None:
    plain = generator_of()
    distances, _ = plain.heard("new", NEW, OWN)
    delta = torch.linalg.solve(plain.whitening.turn.mT, torch.full((len(plain.whitening.centre),), 0.5).double())
    moved = replace(OWN, sums=OWN.sums + OWN.counts[:, None] * delta)
    change = plain.expected_means(distances, moved) - plain.expected_means(distances, OWN)
    assert float(change.mean()) == pytest.approx(0.5 * leaning(plain, "new", NEW, OWN).own, abs=1e-5)


def test_a_near_client_counts_more_than_a_far_one_and_all_together_count_once() -> None:
    found = leaning(generator_of(), "new", NEW, None)
    assert found.own == 0.0
    assert found.others["a"] > found.others["e"]
    assert sum(found.others.values()) == pytest.approx(1.0, abs=0.05)


def test_more_samples_of_its_own_make_a_client_lean_on_itself() -> None:
    plain = generator_of()
    few, many = (leaning(plain, "new", NEW, client(9, counts)).own for counts in ((1, 0, 1), (30, 20, 30)))
    assert 0.0 < few < many < 1.0
