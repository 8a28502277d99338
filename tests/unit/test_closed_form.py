"""Heads in closed form against the same algorithms on all samples in plain numpy: unequal clients, absent classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import compute_class_statistics
from strategies.methods.closed_form import ClosedForm, DescribedState
from strategies.methods.registry import build_method
from tests.builders import CLASSES, WIDTH, make_adapter, make_card

INITIAL = make_adapter(0, fresh=True)
SIZES = {"a": 31, "b": 12, "c": 20, "new": 9}
CARDS = {name: make_card(name, trains=name != "new", num_examples=size) for name, size in SIZES.items()}
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def samples_of(name: str) -> tuple[Matrix, Matrix]:
    """Features that correlate with the class, and labels; ``new`` has no sample of class 2."""
    chance = np.random.default_rng(sum(map(ord, name)))
    labels = np.arange(SIZES[name]) % (2 if name == "new" else CLASSES)
    mixing = np.random.default_rng(1).normal(size=(WIDTH, WIDTH))
    shift = 1.0 if name == "c" else 0.0
    return chance.normal(size=(SIZES[name], WIDTH)) @ mixing + 2.0 * np.eye(CLASSES, WIDTH)[labels] + shift, labels


SAMPLES = {name: samples_of(name) for name in SIZES}
TRAINING = [SAMPLES[name] for name in "abc"]


def method_of(name: str, **values: str | float) -> ClosedForm:
    return build_method(RunConfig.parse({"method": name, **values}))


def described(method: ClosedForm, names: str | list[str], cards: dict[str, ClientCard] = CARDS) -> DescribedState:
    state = method.register(method.init(INITIAL), cards)
    statistics = {
        name: compute_class_statistics(
            torch.tensor(SAMPLES[name][0]),
            torch.tensor(SAMPLES[name][1]),
            num_classes=CLASSES,
            rank=method.statistics_rank(state),
        )
        for name in names
    }
    return method.with_statistics(state, statistics)


def head_of(method: ClosedForm, state: DescribedState, name: str) -> Matrix:
    return method.served(state, [CARDS[name]])[0].head.double().numpy()


def ridge_regression(weight: float) -> Matrix:
    features = np.concatenate([x for x, _ in TRAINING])
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    targets = np.eye(CLASSES)[np.concatenate([y for _, y in TRAINING])]
    return np.linalg.solve(inputs.T @ inputs + weight * np.eye(WIDTH + 1), inputs.T @ targets).T


def covariance_within(ridge: float) -> Matrix:
    """Of the samples around the mean of their class at their client."""
    residuals = [x[y == c] - x[y == c].mean(axis=0) for x, y in TRAINING for c in range(CLASSES)]
    freedom = sum(len(one) - 1 for one in residuals)
    covariance = sum(one.T @ one for one in residuals) / freedom
    return covariance + ridge * np.diag(covariance).mean() * np.eye(WIDTH)


def class_means(parts: list[tuple[Matrix, Matrix]]) -> Matrix:
    features, labels = (np.concatenate(list(column)) for column in zip(*parts, strict=True))
    return np.stack([features[labels == c].mean(axis=0) for c in range(CLASSES)])


def shrunk_means(own: tuple[Matrix, Matrix], towards: Matrix, strength: float) -> Matrix:
    rows = []
    for c in range(CLASSES):
        mine = own[0][own[1] == c]
        rows.append((mine.sum(axis=0) + strength * towards[c]) / (len(mine) + strength))
    return np.stack(rows)


def discriminant_of(means: Matrix, covariance: Matrix) -> Matrix:
    precision = np.linalg.inv(covariance)
    bias = -0.5 * np.einsum("cd,de,ce->c", means, precision, means)
    head = np.concatenate([means @ precision, bias[:, None]], axis=1)
    return head - head.mean(axis=0)


def test_fed3r_is_the_ridge_regression_of_all_samples_with_rows_of_length_one_over_the_temperature() -> None:
    method = method_of("fed3r", **{"fed3r.ridge": 0.7, "fed3r.temperature": 0.25})
    state = described(method, list(SIZES))
    expected = ridge_regression(0.7)
    expected = expected / np.linalg.norm(expected[:, :-1], axis=1, keepdims=True) / 0.25
    for name in SIZES:
        np.testing.assert_allclose(head_of(method, state, name), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["a", "new"])
def test_lda_shrinks_a_clients_class_means_to_those_of_all_that_train(name: str) -> None:
    method = method_of("lda", **{"lda.shrinkage": 7.0, "lda.ridge": 0.2})
    state = described(method, list(SIZES))
    means = shrunk_means(SAMPLES[name], class_means(TRAINING), 7.0)
    expected = discriminant_of(means, covariance_within(0.2))
    np.testing.assert_allclose(head_of(method, state, name), expected, rtol=1e-3, atol=1e-3)


def test_lda_gives_a_client_without_statistics_what_all_share() -> None:
    method = method_of("lda", **{"lda.ridge": 0.2})
    state = described(method, "abc")
    expected = discriminant_of(class_means(TRAINING), covariance_within(0.2))
    np.testing.assert_allclose(head_of(method, state, "new"), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(method.anchor(state).head.double().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_lda_with_clusters_shrinks_to_the_cluster_and_the_cluster_to_all() -> None:
    method = method_of("lda", **{"lda.shrinkage": 7.0, "lda.ridge": 0.2, "lda.clusters": 2})
    cards = {name: placed(card, 9.0 if name == "c" else 0.0) for name, card in CARDS.items()}
    state = described(method, list(SIZES), cards)
    overall = class_means(TRAINING)
    both = tuple(np.concatenate([SAMPLES["a"][part], SAMPLES["b"][part]]) for part in (0, 1))
    means = shrunk_means(SAMPLES["new"], shrunk_means(both, overall, 7.0), 7.0)
    expected = discriminant_of(means, covariance_within(0.2))
    np.testing.assert_allclose(head_of(method, state, "new"), expected, rtol=1e-3, atol=1e-3)


def placed(card: ClientCard, place: float) -> ClientCard:
    mean = place + 0.01 * card.signature.feature_mean
    return replace(card, signature=replace(card.signature, feature_mean=mean))


@pytest.mark.parametrize("name", ["lda", "fed3r"])
def test_rounds_change_nothing_and_before_any_statistics_everybody_gets_the_fresh_adapter(name: str) -> None:
    method = method_of(name)
    state = method.register(method.init(INITIAL), CARDS)
    assert method.aggregate(state, []) is state
    assert method.served(state, [CARDS["a"]]) == [INITIAL]
    assert method.anchor(state) is INITIAL
    later = described(method, list(SIZES))
    assert method.start(later, CARDS["a"]) is INITIAL
    assert isinstance(method.served(later, [CARDS["a"]])[0], Adapter)
    assert tuple(method.plan(later, CARDS["a"]).up) == ()


@pytest.mark.parametrize("name", ["lda", "fed3r"])
def test_a_private_run_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="needs class statistics, which clients of a private run do not send"):
        method_of(name, **{"privacy.adapter-noise": 1.0})
