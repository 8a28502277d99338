"""Clustered federation: who belongs together, what a cluster averages, what a newcomer gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from strategies.methods.base.server import ClientUpdate
from strategies.methods.clustered.division import k_means
from strategies.methods.clustered.server import Clustered, ClusteredState
from strategies.methods.registry import build_method
from tests.builders import make_adapter, make_card, make_metrics

INITIAL = make_adapter(0, fresh=True)


def card_at(name: str, place: float, *, trains: bool = True) -> ClientCard:
    """A client whose mean features lie around ``place``."""
    card = make_card(name, trains=trains)
    noise = 0.01 * card.signature.feature_mean
    return replace(card, signature=replace(card.signature, feature_mean=place + noise))


CARDS = {name: card_at(name, place) for name, place in zip("abcd", (0.0, 0.0, 5.0, 5.0), strict=True)}


def method_of(warm_rounds: int, clusters: int = 2) -> Clustered:
    values = {"method": "clustered", "clustered.clusters": clusters, "clustered.warm-rounds": warm_rounds}
    return build_method(RunConfig.parse(values))


def after(method: Clustered, state: ClusteredState, ends: dict[str, tuple[Adapter, int]]) -> ClusteredState:
    updates = [ClientUpdate(CARDS[name], INITIAL, end, make_metrics(n)) for name, (end, n) in sorted(ends.items())]
    return method.aggregate(state, updates)


def test_k_means_finds_groups_of_points_and_is_the_same_for_the_same_seed() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 4.0], [9.0, 2.0]])
    centers = k_means(points, 2, seed=7)
    assert sorted(centers.tolist()) == [[0.0, 1.0], [9.0, 2.0]]
    assert torch.equal(centers, k_means(points, 2, seed=7))
    assert len(k_means(points[:2], 4, seed=7)) == 2


def test_a_cluster_averages_its_own_clients_by_samples_and_the_other_stays() -> None:
    method = method_of(warm_rounds=0)
    state = method.register(method.init(INITIAL), CARDS)
    one, two = make_adapter(1), make_adapter(2)
    state = after(method, state, {"a": (one, 30), "b": (two, 10)})
    got = method.start(state, CARDS["b"]).tensors()
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(got[name], 0.75 * tensor + 0.25 * two.tensors()[name])
    assert method.start(state, CARDS["c"]) is INITIAL


def test_all_share_one_adapter_until_the_clusters_part() -> None:
    method = method_of(warm_rounds=1)
    state = method.register(method.init(INITIAL), CARDS)
    state = after(method, state, {"a": (make_adapter(1), 10), "c": (make_adapter(2), 10)})
    assert method.start(state, CARDS["a"]) is method.start(state, CARDS["d"])
    torch.testing.assert_close(state.adapters[0].head, (make_adapter(1).head + make_adapter(2).head) / 2)
    state = after(method, state, {"a": (make_adapter(3), 10)})
    assert method.start(state, CARDS["a"]) is not method.start(state, CARDS["d"])


@pytest.mark.parametrize(("place", "like"), [(0.4, "a"), (4.0, "c")])
def test_a_newcomer_gets_the_adapter_of_the_cluster_of_its_signature(place: float, like: str) -> None:
    method = method_of(warm_rounds=0)
    state = method.register(method.init(INITIAL), CARDS)
    state = after(method, state, {"a": (make_adapter(1), 10), "c": (make_adapter(2), 10)})
    newcomer = card_at("z", place, trains=False)
    later = method.register(state, {**CARDS, "z": newcomer})
    assert later is state
    assert method.start(state, newcomer) is method.start(state, CARDS[like])


def test_clients_that_never_train_do_not_shape_the_clusters() -> None:
    method = method_of(warm_rounds=1)
    far = {f"u{index}": card_at(f"u{index}", 100.0 * (index + 1), trains=False) for index in range(3)}
    with_them = method.register(method.init(INITIAL), {**CARDS, **far})
    assert {name: with_them.cluster(CARDS[name]) for name in "abcd"} in (
        {"a": 0, "b": 0, "c": 1, "d": 1},
        {"a": 1, "b": 1, "c": 0, "d": 0},
    )
