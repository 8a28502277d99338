"""Covariances within classes: the formula in plain numpy, and what choosing by likelihood finds in clients made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.head_generator import HeadGenerator, Whitening
from models.personalization.within_class import WithinClass

CLASSES, WIDTH = 3, 5
WIDE = torch.tensor([3.0, 1.0, 1.0, 0.3, 1.0])
OTHER = torch.tensor([0.3, 1.0, 1.0, 3.0, 1.0])


def samples(seed: int, spread: torch.Tensor, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    features = spread * torch.randn(count, WIDTH, generator=generator)
    return features + 1.2 * torch.eye(CLASSES, WIDTH)[labels], labels


def described(seed: int, spread: torch.Tensor, count: int = 60, rank: int = WIDTH) -> ClassStatistics:
    return compute_class_statistics(*samples(seed, spread, count), num_classes=CLASSES, rank=rank)


def model(statistics: list[ClassStatistics], nu: float, length: float) -> WithinClass:
    whitening = Whitening.of(statistics)
    return WithinClass(statistics, whitening.turn, whitening.ridge, nu, length)


def two_kinds(clients: int, other: torch.Tensor) -> tuple[list[ClassStatistics], torch.Tensor]:
    """Return clients of which every second one spreads in another way, and distances that tell the two apart."""
    kind = torch.arange(clients) % 2
    statistics = [described(seed, other if odd else WIDE) for seed, odd in enumerate(kind.tolist())]
    return statistics, 4.0 * (kind[:, None] != kind).double() + 0.2 * (1 - torch.eye(clients).double())


@pytest.mark.parametrize("rank", [2, WIDTH])
def test_the_covariance_is_the_shrunk_sum_of_scatters(rank: int) -> None:
    statistics = [described(seed, WIDE, count, rank) for seed, count in enumerate((9, 30, 14))]
    own, distances, nu, length = described(7, OTHER, 21, rank), torch.tensor([0.4, 1.3, 2.0]), 40.0, 0.7
    one = model(statistics, nu, length)
    turn = one.turn.numpy()
    pooled = sum(part.dense_scatter().double().numpy() for part in statistics) / sum(p.freedom for p in statistics)
    ridge = 0.01 * np.diag(pooled).mean() * np.eye(WIDTH)
    weights = [*np.exp(-distances.double().numpy() / length), 1.0]
    scatter = sum(w * p.dense_scatter().double().numpy() for w, p in zip(weights, [*statistics, own], strict=True))
    freedom = sum(w * p.freedom for w, p in zip(weights, [*statistics, own], strict=True))
    expected = turn.T @ ((nu * pooled + scatter) / (nu + freedom) + ridge) @ turn
    np.testing.assert_allclose(np.linalg.inv(one.precision(distances, own).numpy()), expected, rtol=1e-4, atol=1e-6)


def test_without_an_end_to_the_federations_samples_the_covariance_is_everybodys() -> None:
    one = model([described(seed, WIDE) for seed in range(4)], torch.inf, 1.0)
    torch.testing.assert_close(one.precision(torch.zeros(4), described(9, OTHER)), torch.eye(WIDTH).double())


def test_clients_that_spread_alike_are_found_to_share_a_covariance_and_others_to_have_their_own() -> None:
    found = []
    for other in (WIDE, OTHER):
        statistics, distances = two_kinds(12, other)
        whitening = Whitening.of(statistics)
        found.append(WithinClass.fit(statistics, whitening.turn, whitening.ridge, distances).samples)
    assert found[0] >= 15 * WIDTH
    assert found[1] == 2 * WIDTH


def test_a_newcomer_is_served_the_better_for_its_kinds_covariance() -> None:
    statistics, distances = two_kinds(12, OTHER)
    generator = HeadGenerator.fit({str(place): one for place, one in enumerate(statistics)}, distances)
    right = {"own": 0.0, "shared": 0.0}
    for seed, place, spread in ((90, 0, WIDE), (91, 1, OTHER)):
        near, (features, labels) = distances[place] + 0.1, samples(seed, spread, 3000)
        shared = generator.whitening.head(generator.expected_means(near, None), torch.eye(WIDTH).double())
        for name, head in (("own", generator.head("new", near, None)), ("shared", shared)):
            right[name] += float(((features @ head[:, :-1].mT + head[:, -1]).argmax(dim=1) == labels).float().mean())
    assert right["own"] > right["shared"] + 0.1


def test_only_the_most_alike_count(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, _ = two_kinds(6, OTHER)
    one, distances = model(statistics, 30.0, 1.0), torch.tensor([0.1, 9.0, 0.2, 9.0, 0.3, 9.0])
    monkeypatch.setattr("models.personalization.within_class.MOST_NEIGHBOURS", 3)
    three = model([statistics[place] for place in (0, 2, 4)], 30.0, 1.0)
    expected = WithinClass(three.statistics, one.turn, one.ridge, 30.0, 1.0).precision(distances[[0, 2, 4]])
    torch.testing.assert_close(one.precision(distances), expected)
