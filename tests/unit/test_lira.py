"""The likelihood-ratio attack finds what it is given to find, and nothing where there is nothing."""

from __future__ import annotations

import torch

from benchmarks.lira import class_scores, likelihood_ratios
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
