"""Starts of a cohort at once, against the formula computed client by client."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.adapters.adapter import Adapter, combine
from models.personalization.synthesizer import Synthesizer
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.generator import ServedGenerator, Teaching
from strategies.methods.hyperlora.server import HyperLoraMethod
from strategies.methods.hyperlora.starts import MOST_SPREAD, alike
from strategies.methods.hyperlora.state import HyperLoraState, attended
from tests.builders import RANK, WIDTH, assert_same_products, make_adapter, make_card, make_metrics, moved

NAMES = "abcdefgh"
CARDS = {name: make_card(name, seed=index) for index, name in enumerate(NAMES)}
GENERATOR = ServedGenerator("atoms", 3, 8, 0.3, Teaching(5, 0.05, 6, 0.1), seed=0)
PLAIN = HyperLoraMethod(synthesizer=Synthesizer(2.0, strength=0.8))
GENERATING = replace(PLAIN, generator=GENERATOR)


def after_rounds(method: HyperLoraMethod, rounds: int = 2) -> HyperLoraState:
    state = method.register(method.init(make_adapter(0)), CARDS)
    for server_round in range(1, rounds + 1):
        seen = list(CARDS.values())[:-2]
        updates = [
            ClientUpdate(card, start, moved(start, card.client_id, server_round), make_metrics())
            for card, start in zip(seen, method.starts(state, seen), strict=True)
        ]
        state = method.aggregate(state, updates)
    return state


def by_formula(method: HyperLoraMethod, state: HyperLoraState, name: str) -> Adapter:
    """T_r(anchor + (1 - g) strength sum_j alpha_j D_j + g G(s))."""
    alpha = dict(zip(state.names, attended(state, [CARDS[name]], method.synthesizer)[0].tolist(), strict=True))
    share = method.generator.share if method.generator else 0.0
    terms, weights = [state.anchor], [1.0]
    for other, weight in alpha.items():
        terms.append(state.memory[other])
        weights.append((1 - share) * 0.8 * weight)
    if method.generator:
        made = method.generator.deviations(state, state.vector_of(CARDS[name])[None])
        terms.append(made[0])
        weights.append(share)
    return combine(terms, weights).truncated(state.anchor.rank).aligned(state.anchor)


@pytest.mark.parametrize("method", [PLAIN, GENERATING], ids=["memory", "memory and generator"])
def test_the_starts_are_those_of_the_formula(method: HyperLoraMethod) -> None:
    state = after_rounds(method)
    for name, start in zip(CARDS, method.starts(state, list(CARDS.values())), strict=True):
        expected = by_formula(method, state, name)
        assert_same_products(start, expected, 1e-5)
        for key, value in start.tensors().items():
            torch.testing.assert_close(value, expected.tensors()[key], rtol=1e-4, atol=1e-4)


def test_a_start_does_not_depend_on_who_else_is_asked() -> None:
    state = after_rounds(GENERATING)
    together = GENERATING.starts(state, list(CARDS.values()))
    for card, start in zip(CARDS.values(), together, strict=True):
        assert_same_products(start, GENERATING.start(state, card), 1e-5)


def test_the_same_cohort_gets_the_same_bits() -> None:
    state = after_rounds(GENERATING)
    first, again = (GENERATING.starts(state, list(CARDS.values())) for _ in range(2))
    assert all(
        torch.equal(value, other.tensors()[key])
        for one, other in zip(first, again, strict=True)
        for key, value in one.tensors().items()
    )


def test_before_anything_is_remembered_everybody_gets_the_anchor() -> None:
    state = PLAIN.register(PLAIN.init(make_adapter(0)), CARDS)
    assert all(start is state.anchor for start in PLAIN.starts(state, list(CARDS.values())))


def test_clients_that_train_another_rank_are_remembered_beside_the_others() -> None:
    state = PLAIN.register(PLAIN.init(make_adapter(0)), CARDS)
    updates = [
        ClientUpdate(CARDS[name], make_adapter(5, rank=rank), make_adapter(seed, rank=rank), make_metrics())
        for seed, (name, rank) in enumerate({"a": RANK, "b": 1, "c": 1}.items(), start=10)
    ]
    state = PLAIN.aggregate(state, updates)
    assert len({one.rank for one in state.memory.values()}) == 1
    starts = PLAIN.starts(state, list(CARDS.values()))
    assert {one.rank for one in starts} == {RANK}


def test_one_description_that_is_far_out_moves_the_distances_of_the_others_by_its_share_only() -> None:
    honest = {f"client-{seed}": make_card(f"client-{seed}", seed=seed) for seed in range(16)}
    liar = make_card("liar")
    liar = replace(liar, signature=replace(liar.signature, feature_mean=torch.full((WIDTH,), 100.0)))
    apart, with_it = (
        PLAIN.register(PLAIN.init(make_adapter(0)), cards).distances([*honest], [*honest])
        for cards in (honest, {**honest, "liar": liar})
    )
    ratios = (with_it / apart)[~torch.eye(16, dtype=torch.bool)]
    assert float(ratios.log().abs().max()) < 0.7


def test_clients_of_different_neighbourhoods_are_not_mixed_together() -> None:
    rows = torch.zeros(40, 400)
    for client in range(40):
        rows[client, 100 * (client % 4) : 100 * (client % 4) + 20] = 0.05
    groups = alike(rows, make_adapter(0))
    assert sorted(index for group in groups for index in group) == list(range(40))
    assert groups == alike(rows, make_adapter(0))
    for group in groups:
        union = int((rows[group] != 0).any(dim=0).sum())
        assert union * len(group) <= MOST_SPREAD * int((rows[group] != 0).sum())
