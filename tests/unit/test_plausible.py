"""Class statistics that cannot be: left out of what others learn, whatever few liars say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.head_generator import HeadGenerator
from models.personalization.plausible import (
    FARTHEST_CLASS,
    contradicting,
    distance_ratios,
    drawn_in,
    with_likely_means,
    with_likely_spread,
)
from strategies.methods.hyperlora.probes import ANCHOR, Candidate, best_of

CLASSES, WIDTH, CLIENTS = 3, 5, 8
NEAR = torch.full((CLIENTS, CLIENTS), 0.1).fill_diagonal_(0.0)


def client(seed: int, shift: float = 0.3) -> ClassStatistics:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(42) % CLASSES
    features = torch.randn(42, WIDTH, generator=generator) * torch.tensor([3.0, 1.0, 1.0, 0.3, 0.1])
    features[:, :CLASSES] += 4.0 * torch.eye(CLASSES)[labels] + shift * torch.randn(CLASSES, generator=generator)
    return compute_class_statistics(features, labels, num_classes=CLASSES, rank=WIDTH)


HONEST = {f"client-{seed}": client(seed) for seed in range(CLIENTS)}


def with_lies(count: int, **lies: torch.Tensor) -> dict[str, ClassStatistics]:
    liars = list(HONEST)[:count]
    return {name: replace(one, **lies) if name in liars else one for name, one in HONEST.items()}


FLAT = {"scatter": 3.0 * torch.eye(WIDTH) * 42**0.5}
NARROW = {"scatter": torch.cat([30.0 * torch.eye(WIDTH)[1:2], torch.ones(WIDTH - 1, WIDTH)])}
FAR = {"sums": 42 / CLASSES * torch.tensor([[0.0, 0, 0, 0, 40], [0, 0, 0, 40, 0], [0, 0, 0, -40, 0]])}


def test_honest_clients_are_all_believed() -> None:
    generator = HeadGenerator.fit(HONEST, NEAR)
    assert (generator.disbelieved, list(generator.names)) == (frozenset(), list(HONEST))


@pytest.mark.parametrize(
    "lies",
    [FLAT, NARROW, FAR],
    ids=["a spread that is no one's", "all of it in one direction", "means where nobody's are"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_liars_are_left_out_and_cost_the_others_nothing(lies: dict[str, torch.Tensor], count: int) -> None:
    without = {name: one for name, one in HONEST.items() if name not in list(HONEST)[:count]}
    generator = HeadGenerator.fit(with_lies(count, **lies), NEAR)
    assert generator.disbelieved == set(list(HONEST)[:count])
    expected = HeadGenerator.fit(without, NEAR[count:, count:])
    head = generator.head("client-7", NEAR[7, count:], HONEST["client-7"])
    torch.testing.assert_close(head, expected.head("client-7", NEAR[7, count:], HONEST["client-7"]))


def test_where_half_would_be_left_out_or_few_are_known_nobody_is() -> None:
    assert with_likely_spread(list(with_lies(4, **FLAT).values())) == list(range(CLIENTS))
    assert with_likely_spread(list(with_lies(1, **FLAT).values())[:3]) == [0, 1, 2]
    label, means = torch.zeros(3, dtype=torch.long), torch.tensor([[0.0], [1.0], [99.0]])
    assert with_likely_means(3, torch.arange(3), label, means, torch.zeros(3)) == [0, 1, 2]


def test_copies_of_one_client_make_nobody_implausible() -> None:
    """Three of five hold the same data, so that the median distance is 0; the others differ by chance alone."""
    means = torch.tensor([[0.0, 0.0]] * 3 + [[0.3, 0.1], [-0.2, 0.3]], dtype=torch.float64)
    label, noise = torch.zeros(5, dtype=torch.long), torch.full((5,), 0.05)
    assert float(distance_ratios(label, means, noise).max()) < 2
    assert torch.equal(drawn_in(label, means, noise), means)


def test_one_class_that_lies_too_far_is_drawn_in_and_the_others_stay() -> None:
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, 90.0]], dtype=torch.float64)
    label = torch.zeros(5, dtype=torch.long)
    assert distance_ratios(label, means, torch.zeros(5)).tolist() == pytest.approx([0.0, 1.0, 1.0, 1.0, 45.0])
    drawn = drawn_in(label, means, torch.zeros(5))
    assert torch.equal(drawn[:4], means[:4])
    assert drawn[4].tolist() == pytest.approx([0.0, 2 * FARTHEST_CLASS])


def test_a_newcomer_learns_nothing_from_a_client_that_contradicts_it() -> None:
    varied = {name: client(seed, shift=3.0) for seed, name in enumerate(HONEST)}
    newcomer = varied["client-0"]
    varied["client-0"] = replace(newcomer, sums=newcomer.sums.roll(1, dims=0))
    generator = HeadGenerator.fit(varied, NEAR)
    assert generator.disbelieved == frozenset()
    distances = torch.full((CLIENTS,), 0.1).index_fill(0, torch.tensor([0]), 0.0)
    alone = distances.index_fill(0, torch.tensor([0]), torch.inf)
    found = generator.head("new", distances, newcomer)
    torch.testing.assert_close(found, generator.head("new", alone, newcomer))
    means = generator.expected_means(distances.double(), newcomer)
    believing = generator.whitening.head(means, generator.within_class.precision(distances, newcomer))
    assert float((found - believing).abs().max()) > 0.1


def test_who_contradicts_is_judged_by_what_is_usual() -> None:
    client_of, expected = torch.tensor([0, 1, 1, 2]), torch.ones(4)
    assert contradicting(torch.tensor([0.9, 5.0, 9.0, 1.1]), expected, client_of, 4).tolist() == [False, True] + 2 * [
        False
    ]
    assert not contradicting(torch.tensor([5.0, 5.0, 9.0, 6.0]), expected, client_of, 4).any()
    assert not contradicting(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.long), 4).any()


def test_liars_below_half_cannot_have_the_anchor_chosen() -> None:
    heads = [Candidate(0.0, 0.5, 0.5), Candidate(0.0, 1.0, 0.25)]
    honest, liars = [-0.4] * 11, [1000.0] * 5
    losses = [[0.0] * 16, honest + liars, [loss - 0.1 for loss in honest] + liars]
    assert best_of([ANCHOR, *heads], losses) == heads[1]
    assert best_of([ANCHOR, *heads], [[0.0] * 16, [0.3] * 16, [0.2] * 16]) == ANCHOR
