"""The likelihood-ratio attack finds what it is given to find, and nothing where there is nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.lira import Target, class_scores, likelihood_ratios
from benchmarks.lira_sums import Attack
from benchmarks.membership import success
from models.adapters.adapter import Adapter
from models.adapters.training import TokenSet
from models.personalization.class_statistics import compute_class_statistics

SHADOWS, SAMPLES = 40, 30


def test_scores_that_are_higher_with_a_sample_tell_members_and_others_apart() -> None:
    chance = torch.Generator().manual_seed(0)
    inside = torch.rand(SHADOWS, SAMPLES, generator=chance) < 0.5
    made = torch.randn(SHADOWS, SAMPLES, generator=chance) + 4.0 * inside
    members = torch.arange(SAMPLES) < 10
    true = torch.randn(SAMPLES, generator=chance) + 4.0 * members
    ratios = likelihood_ratios(true, made, inside)
    assert float(ratios[members].mean()) > 2 > -2 > float(ratios[~members].mean())


def test_a_sample_that_was_always_or_never_drawn_tells_nothing() -> None:
    inside = torch.tensor([[True, False, True], [True, False, False]])
    ratios = likelihood_ratios(torch.ones(3), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), inside)
    assert ratios[:2].tolist() == [0.0, 0.0]
    assert ratios[2] != 0


def test_a_sample_is_nearer_to_the_mean_that_it_is_part_of() -> None:
    features, labels = torch.randn(12, 4, generator=torch.Generator().manual_seed(3)), torch.arange(12) % 3
    told = compute_class_statistics(features[:9], labels[:9], num_classes=3, rank=4)
    scores = class_scores(told, features, labels)
    assert float(scores[:9].mean()) > float(scores[9:].mean())


class Telling:
    """Stands for a client whose samples are told apart by the place they have."""

    def __init__(self, name: str) -> None:
        chance = torch.Generator().manual_seed(len(name))
        self.name, self.members, self.tokens = name, 20, TokenSet(torch.zeros(40, 1), torch.arange(40) % 3)
        self.features = torch.randn(40, 4, generator=chance)

    sets, ratios = Target.sets, Target.ratios

    def trained(self, start: Adapter, chosen: Tensor, draw: int, trains: str) -> Adapter:
        """Move the head to the means of the classes."""
        labels = self.tokens.labels[chosen]
        told = compute_class_statistics(self.features[chosen], labels, num_classes=3, rank=4)
        means = told.sums / told.counts.clamp_min(1.0)[:, None]
        return Adapter({}, start.head + torch.cat([means, torch.zeros(3, 1)], dim=1))

    def confidence(self, adapter: Adapter) -> Tensor:
        """Return how near a sample is to the mean of its class."""
        return (self.features * adapter.head[self.tokens.labels, :-1]).sum(dim=1)


def test_a_sum_over_more_clients_tells_less_of_each_and_noise_tells_nothing() -> None:
    targets: Any = {name: Telling(name) for name in ("a", "bb", "ccc", "dddd", "eeeee", "ffffff")}
    head = Adapter({}, torch.randn(3, 5, generator=torch.Generator().manual_seed(1)))
    attack = Attack(targets, head, shadows=64, rounds=10)
    vars(attack)["start_of_factor"] = head
    tried = {
        "one": partial(attack.of_class_sums, 1),
        "all": partial(attack.of_class_sums, 6),
        "movement": partial(attack.of_movement, 0.0),
        "with noise": partial(attack.of_movement, attack.noise_of_movements),
    }
    areas = {name: success(attack.ratios(release))["auc"] for name, release in tried.items()}
    assert areas["one"] > areas["all"] + 0.1
    assert areas["movement"] > areas["with noise"] + 0.1
    assert areas["with noise"] < 0.6
    assert attack.together("ffffff", 3) == ["ffffff", "a", "bb"]
