"""Heads from class statistics: the prediction against the textbook's conditional Gaussian, and what it is good for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.personalization.class_means import VAGUE, Observed, likeliest
from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.head_generator import HeadGenerator, Whitening, pseudo_counts

CLASSES, WIDTH, CLIENTS = 3, 4, 5


def client(seed: int, counts: tuple[int, ...], shift: torch.Tensor | None = None) -> ClassStatistics:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
    features = torch.randn(len(labels), WIDTH, generator=generator)
    features[:, :CLASSES] += 2.0 * torch.eye(CLASSES)[labels]
    if shift is not None:
        features += shift
    return compute_class_statistics(features, labels, num_classes=CLASSES, rank=WIDTH)


STATISTICS = {
    name: client(seed, counts)
    for seed, (name, counts) in enumerate(
        {"a": (9, 3, 7), "b": (2, 0, 11), "c": (0, 0, 6), "d": (5, 5, 1), "e": (8, 2, 3)}.items()
    )
}
PLACES = torch.tensor([[0.0], [0.3], [1.1], [2.0], [2.4]])
DISTANCES = torch.cdist(PLACES, PLACES).square()


def conditional_mean(generator: HeadGenerator, statistics: dict[str, ClassStatistics], target: int) -> np.ndarray:
    """Return E[m_c + u_i + v_ic | all observations] of the client at ``target``, from the joint covariance."""
    v, whitening = generator.variances, generator.whitening
    rows, means = [], []
    for place, one in enumerate(statistics.values()):
        for label in range(CLASSES):
            if one.counts[label] > 0:
                rows.append((place, label, float(one.counts[label])))
                mean = one.sums[label].double() / one.counts[label].double()
                means.append(((mean - whitening.centre) @ whitening.turn).numpy())
    alike = np.exp(-DISTANCES.double().numpy() / v.length)

    def covariance(i: int, c: int, j: int, k: int) -> float:
        return v.client * alike[i, j] + (c == k) * (v.single * alike[i, j] + VAGUE)

    joint = np.array([[covariance(i, c, j, k) for j, k, _ in rows] for i, c, _ in rows])
    joint += np.diag([float((1 - whitening.ridge).mean()) / n for *_, n in rows])
    cross = np.array([[covariance(target, c, j, k) for j, k, _ in rows] for c in range(CLASSES)])
    return np.asarray(cross @ np.linalg.solve(joint, np.stack(means)))


@pytest.mark.parametrize("target", range(CLIENTS))
def test_the_prediction_is_the_conditional_mean_of_the_model(target: int) -> None:
    generator = HeadGenerator.fit(STATISTICS, DISTANCES)
    name = list(STATISTICS)[target]
    precision = generator.within_class.precision(DISTANCES[target])
    expected = generator.whitening.head(torch.from_numpy(conditional_mean(generator, STATISTICS, target)), precision)
    torch.testing.assert_close(
        generator.head(name, DISTANCES[target], STATISTICS[name]), expected, atol=1e-3, rtol=1e-3
    )


def test_a_client_that_claims_many_samples_counts_for_a_few_times_the_median_however_many_it_claims() -> None:
    def head_of_another(factor: float) -> torch.Tensor:
        own = STATISTICS["a"]
        claimed = ClassStatistics(
            factor * own.counts, factor * own.sums, factor**0.5 * own.scatter, factor * own.remainder
        )
        generator = HeadGenerator.fit({**STATISTICS, "a": claimed}, DISTANCES)
        return generator.head("b", DISTANCES[1], STATISTICS["b"])

    torch.testing.assert_close(head_of_another(10.0), head_of_another(1e6), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("target", range(CLIENTS))
def test_too_many_class_means_are_predicted_class_by_class(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.personalization.head_generator.MOST_EXACT", 3)
    generator = HeadGenerator.fit(STATISTICS, DISTANCES)
    assert (len(generator.blocks), generator.variances.client) == (CLASSES, 0.0)
    expected = torch.from_numpy(conditional_mean(generator, STATISTICS, target))
    torch.testing.assert_close(generator.expected_means(DISTANCES[target].double(), None), expected)


def test_a_thousand_classes_have_a_head() -> None:
    classes, width = 1000, 6
    centres = 3.0 * torch.randn(classes, width, generator=torch.Generator().manual_seed(0))

    def told(seed: int) -> ClassStatistics:
        labels = torch.arange(0, classes, 1 + seed % 3).repeat(2)
        features = centres[labels] + torch.randn(len(labels), width, generator=torch.Generator().manual_seed(seed))
        return compute_class_statistics(features, labels, num_classes=classes, rank=2)

    clients = {str(seed): told(seed) for seed in range(1, 9)}
    generator = HeadGenerator.fit(clients, torch.ones(8, 8) - torch.eye(8))
    head = generator.head("new", torch.ones(8), None)
    hits = (centres @ head[:, :-1].mT + head[:, -1]).argmax(dim=1) == torch.arange(classes)
    assert head.shape == (classes, width + 1)
    assert float(hits.float().mean()) > 0.8


def test_of_very_many_clients_some_are_fitted_to_and_the_others_served_like_newcomers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("models.personalization.head_generator.MOST_FITTED", 4)
    generator = HeadGenerator.fit(STATISTICS, DISTANCES)
    assert generator.names == ["a", "b", "d", "e"]
    row = torch.tensor([0, 1, 3, 4])
    own, without = (generator.head("c", DISTANCES[2][row], one) for one in (STATISTICS["c"], None))
    assert not torch.equal(own, without)


def test_variances_are_estimated_from_all_classes_of_some_clients_or_some_classes_of_many() -> None:
    client, label = (one.flatten() for one in torch.meshgrid(torch.arange(400), torch.arange(12), indexing="ij"))
    observed = Observed(client, label, torch.zeros(len(client), 2), torch.ones(len(client)))
    part = observed.of_part(400, 12, 600)
    assert (len(set(part.client.tolist())), len(set(part.label.tolist()))) == (150, 4)
    assert len(part.client) == 600
    assert observed.of_part(400, 12, 10_000) is observed


def test_a_newcomer_is_served_as_if_it_had_been_fitted_too() -> None:
    others = {name: one for name, one in STATISTICS.items() if name != "e"}
    generator = HeadGenerator.fit(others, DISTANCES[:4, :4])
    precision = generator.within_class.precision(DISTANCES[4, :4], STATISTICS["e"])
    expected = generator.whitening.head(torch.from_numpy(conditional_mean(generator, STATISTICS, 4)), precision)
    torch.testing.assert_close(generator.head("e", DISTANCES[4, :4], STATISTICS["e"]), expected, atol=1e-3, rtol=1e-3)


def test_more_samples_of_its_own_move_a_newcomers_head_further_from_that_of_its_neighbours() -> None:
    generator = HeadGenerator.fit(STATISTICS, DISTANCES)
    shift = torch.tensor([0.0, 0.0, 0.0, 3.0])
    heads = [generator.head("new", DISTANCES[0], client(9, (count,) * CLASSES, shift)) for count in (2, 20, 200)]
    without = generator.head("new", DISTANCES[0], None)
    moved = [float((head - without).norm()) for head in heads]
    assert moved[0] < moved[1] < moved[2]


def test_classes_that_a_client_lacks_follow_what_its_other_classes_tell() -> None:
    shifts = 2.0 * torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(6))
    statistics = {str(place): client(place, (9, 9, 9), shift) for place, shift in enumerate(shifts)}
    generator = HeadGenerator.fit(statistics, 30.0 * (1 - torch.eye(12)))
    shift, far = torch.tensor([0.0, 0.0, 0.0, 4.0]), torch.full((12,), 30.0).double()
    before = generator.expected_means(far, None)
    moved = generator.expected_means(far, client(9, (50, 50, 0), shift)) - before
    turned = shift.double() @ generator.whitening.turn
    assert (moved @ turned / turned.square().sum() > 0.3).all()


def test_the_likeliest_variances_tell_alike_clients_from_different_ones() -> None:
    generator = torch.Generator().manual_seed(5)
    places = torch.randn(30, 2, generator=generator)
    distances = torch.cdist(places, places).square().double()
    alike = [client(seed, (20, 20, 20)) for seed in range(30)]
    shifts = 1.5 * torch.randn(30, WIDTH, generator=generator)
    apart = [client(seed, (20, 20, 20), shift) for seed, shift in enumerate(shifts)]
    found = [likeliest(Whitening.of(one).observed(one), distances) for one in (alike, apart)]
    assert found[0].client <= 0.01
    assert found[1].client >= 0.3


def test_pseudo_counts_are_small_where_clients_have_few_of_the_classes() -> None:
    skewed = torch.tensor([[30.0, 0.0, 0.0], [0.0, 28.0, 0.0], [0.0, 1.0, 31.0]])
    even = torch.tensor([[10.0, 11.0, 9.0], [12.0, 9.0, 10.0], [9.0, 11.0, 10.0]])
    assert float(pseudo_counts(skewed).sum()) <= 0.3
    assert float(pseudo_counts(even).sum()) >= 30.0


def test_nothing_can_be_fitted_to_one_sample_a_class() -> None:
    with pytest.raises(ValueError, match="two samples"):
        HeadGenerator.fit({"a": client(0, (1, 1, 1))}, torch.zeros(1, 1))
