"""HiLoRA: subspaces and clusters against numbers, the three tiers, and the term that keeps them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from client_app.runtime import ClientRuntime
from client_app.tasks import train_start
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.plan import LocalPlan, Start
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainRequest
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter, combine
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hilora.client import overlap
from strategies.methods.hilora.clustering import clusters_of, number_of_clusters, smoothed, subspace_distances
from strategies.methods.hilora.server import HiLora, HiLoraState, orthonormal
from strategies.methods.merging import without_head
from strategies.methods.registry import build_method
from tests.builders import RANK, assert_same_products, make_adapter, make_card, make_metrics
from tests.unit.test_tasks import DictKeeper, model, nonzero, runtime

__all__ = ["model", "runtime"]
INITIAL = make_adapter(0, fresh=True)


def bases(seed: int, blocks: int = 3, m: int = 7, r: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(blocks, m, r, generator=generator)}


def test_the_distance_of_subspaces_is_that_of_principal_angles_and_no_gauge_moves_it() -> None:
    one, two = bases(1), bases(2)
    turned = {"w": two["w"] @ torch.tensor([[2.0, 1.0], [0.5, 3.0]])}
    expected = []
    for left, right in zip(one["w"].double().numpy(), two["w"].double().numpy(), strict=True):
        angles = np.linalg.svd(np.linalg.qr(left)[0].T @ np.linalg.qr(right)[0])[1]
        expected.append(1 - (angles**2).sum() / 2)
    got = subspace_distances([one, two, turned])
    assert float(got[0, 1]) == pytest.approx(np.mean(expected))
    assert float(got[0, 2]) == pytest.approx(np.mean(expected))
    assert float(got[1, 2]) == pytest.approx(0, abs=1e-9)


def test_the_largest_gap_of_eigenvalues_tells_the_number_of_clusters() -> None:
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    affinity = torch.where(groups[:, None] == groups, 1.0, 0.01).double()
    assert number_of_clusters(affinity, 6) == 3
    found = clusters_of(1 - affinity, 6, seed=3)
    assert len({(a, b) for a, b in zip(groups.tolist(), found, strict=True)}) == len(set(found)) == 3
    assert clusters_of(torch.zeros(5, 5, dtype=torch.float64), 6, seed=3) == [0] * 5
    assert clusters_of(1 - affinity[:2, :2], 6, seed=3) == [0, 0]


def test_a_smoothed_basis_has_length_one_and_remembers() -> None:
    one, two = bases(1), bases(2)
    first = smoothed(None, one, 0.9)
    after = smoothed(first, two, 0.9)["w"]
    torch.testing.assert_close(after.flatten(1).norm(dim=1), torch.ones(3))
    mixed = 0.9 * first["w"] + 0.1 * two["w"] / two["w"].flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(after, mixed / mixed.flatten(1).norm(dim=1)[:, None, None])


def test_an_orthonormal_gauge_leaves_the_product() -> None:
    adapter = make_adapter(3)
    turned = adapter.map(orthonormal)
    assert_same_products(turned, adapter)
    for factors in turned.low_rank.values():
        torch.testing.assert_close(factors.B.mT @ factors.B, torch.eye(RANK).expand(4, RANK, RANK))


def card_at(name: str, place: float) -> ClientCard:
    card = make_card(name)
    return replace(card, signature=replace(card.signature, feature_mean=place + 0.01 * card.signature.feature_mean))


CARDS = {name: card_at(name, place) for name, place in zip("abcdz", (0.0, 0.0, 5.0, 5.0, 4.0), strict=True)}


def end_of(group: int, seed: int, scale: float = 1.0) -> Adapter:
    """Clients of one group end in one subspace of B."""
    return Adapter(
        {
            kind: replace(factors, B=make_adapter(group).low_rank[kind].B, A=scale * factors.A)
            for kind, factors in make_adapter(seed).low_rank.items()
        },
        make_adapter(seed).head,
    )


def method_of() -> HiLora:
    values = {"method": "hilora", "federation.rounds": 3, "hilora.root-share": 0.3, "hilora.cluster-share": 0.3}
    return build_method(RunConfig.parse(values))


def after(method: HiLora, state: HiLoraState, ends: dict[str, Adapter]) -> HiLoraState:
    updates = [ClientUpdate(CARDS[name], method.start(state, CARDS[name]), end, make_metrics())
               for name, end in sorted(ends.items())]  # fmt: skip
    return method.aggregate(state, updates)


def tiers() -> tuple[HiLora, list[HiLoraState], dict[str, Adapter]]:
    """States before every round, and what the clients end with in the round of the root."""
    method = method_of()
    ends = {"a": end_of(100, 1), "b": end_of(100, 2), "c": end_of(200, 3), "d": end_of(200, 4)}
    states = [method.register(method.init(INITIAL), CARDS)]
    states.append(after(method, states[0], ends))
    states.append(after(method, states[1], {"a": end_of(300, 5), "c": end_of(400, 6)}))
    states.append(after(method, states[2], {"a": end_of(500, 7)}))
    return method, states, ends


def test_the_root_is_the_product_average_and_clusters_follow_from_subspaces() -> None:
    method, states, ends = tiers()
    expected = combine(list(ends.values()), [0.25] * 4).truncated(RANK)
    assert_same_products(states[1].root, expected, 1e-4)
    members = states[1].members
    assert members["a"] == members["b"] != members["c"] == members["d"]
    assert method.plan(states[0], CARDS["a"]).base is None


def test_a_cluster_trains_over_the_root_and_a_leaf_over_both() -> None:
    method, states, _ = tiers()
    assert_same_products(method.plan(states[1], CARDS["a"]).base, without_head(states[1].root), 1e-4)
    assert_same_products(states[2].clusters[states[2].members["a"]], end_of(300, 5), 1e-4)
    a, b = CARDS["a"], CARDS["b"]
    both = combine([without_head(states[2].root), without_head(end_of(300, 5))], [1.0, 1.0])
    for card in (a, b):
        assert_same_products(method.plan(states[2], card).base, both, 1e-4)
    leaf = method.start(states[3], a)
    assert_same_products(leaf, end_of(500, 7))
    fresh = method.start(states[3], b)
    assert_same_products(without_head(fresh), without_head(INITIAL))
    torch.testing.assert_close(fresh.head, end_of(300, 5).head)
    whole = Start(leaf, method.plan(states[3], a)).whole()
    assert_same_products(without_head(whole), combine([both, without_head(leaf)], [1.0, 1.0]), 1e-4)


def test_a_newcomer_joins_the_cluster_of_the_nearest_signatures() -> None:
    method, states, _ = tiers()
    assert states[3].cluster("z") == states[3].members["c"]
    assert_same_products(method.plan(states[3], CARDS["z"]).base, method.plan(states[3], CARDS["d"]).base)


def test_the_overlap_is_that_of_the_formula(model: AdaptedModel) -> None:
    below, above = model.initialise(seed=1), model.initialise(seed=2)
    below, above = (random_left(one, seed) for seed, one in enumerate((below, above)))
    model.load(above)
    expected = sum(
        float((lower.mT @ upper).square().sum())
        for kind in below.low_rank
        for lower, upper in zip(below.low_rank[kind].B, above.low_rank[kind].B, strict=True)
    )
    assert float(overlap(model, below, 0.3)().detach()) == pytest.approx(0.3 * expected, rel=1e-4)


def random_left(adapter: Adapter, seed: int) -> Adapter:
    chance = torch.Generator().manual_seed(seed)
    return adapter.map(lambda one: replace(one, B=torch.randn(one.B.shape, generator=chance)))


def test_a_strong_term_keeps_a_tier_out_of_the_subspace_below(runtime: ClientRuntime) -> None:
    base = without_head(nonzero(runtime).map(orthonormal))
    start, shared = nonzero(runtime), {}
    for penalty in (0.0, 100.0):
        config = RunConfig.parse({"method": "hilora", "hilora.penalty": penalty})
        client = ClientRuntime(config, runtime.model, runtime.federation, runtime.cache, at_site=False)
        request = TrainRequest("full", 1, 10, Start(start, LocalPlan(base=base)))
        end = train_start(client, request, DictKeeper()).end
        shared[penalty] = sum(
            float((one.B.mT @ end.low_rank[kind].B).square().sum()) for kind, one in base.low_rank.items()
        )
    assert shared[100.0] < 0.5 * shared[0.0]


def test_shares_that_leave_nothing_to_the_leaves_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be below 1 together"):
        RunConfig.parse({"method": "hilora", "hilora.root-share": 0.6, "hilora.cluster-share": 0.4})


def test_a_forgotten_client_is_a_newcomer_and_a_cluster_without_members_takes_nobody() -> None:
    method, states, _ = tiers()
    state = states[3]
    for name in "ab":
        state = method.forget(state, name)
    state = method.register(state, {name: CARDS[name] for name in "acdz"})
    assert "a" not in state.leaves
    assert {state.cluster(name) for name in "acdz"} == {states[3].members["c"]}
