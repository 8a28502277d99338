"""Newcomers get the strength that clients with an entry found best for themselves, as if they had none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.adapters.adapter import Adapter, subtract
from models.personalization.head_generator import HeadGenerator, at_scale
from models.personalization.synthesizer import Synthesizer
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.probes import FACTORS, STRENGTHS, candidates
from strategies.methods.hyperlora.server import HyperLoraMethod
from strategies.methods.hyperlora.state import HyperLoraState
from tests.builders import make_adapter, make_card, make_metrics, make_statistics, moved, products

CARDS = {name: make_card(name, seed=index) for index, name in enumerate("abcdefg")}
KNOWN = [CARDS[name] for name in "abcdef"]
METHOD = HyperLoraMethod(synthesizer=Synthesizer(2.0), probe_clients=5)
TRIED = candidates(None, deviations=True)


def after_one_round() -> HyperLoraState:
    state = METHOD.register(METHOD.init(make_adapter(0)), CARDS)
    updates = [
        ClientUpdate(card, state.anchor, moved(state.anchor, card.client_id, 1), make_metrics()) for card in KNOWN
    ]
    return METHOD.aggregate(state, updates)


def beyond_anchor(state: HyperLoraState, start: Adapter) -> float:
    return sum(float(value.square().sum()) for value in products(subtract(start, state.anchor)).values())


def losses(best: float, clients: str = "abcde") -> dict[str, dict[str, float]]:
    return {name: {one.name: 1.0 + abs(one.strength - best) for one in TRIED} for name in clients}


def test_clients_with_an_entry_try_on_what_they_would_get_without_it() -> None:
    state = after_one_round()
    tried = METHOD.probe_starts(state, list(CARDS.values()), 3)
    assert len(tried) == 5
    assert "g" not in tried
    name, starts = next(iter(tried.items()))
    without = replace(state, memory={other: one for other, one in state.memory.items() if other != name})
    expected = products(METHOD.start(without, CARDS[name]))
    for part, value in products(starts["1/0/1"]).items():
        assert value.sub(expected[part]).abs().max() < 1e-4
    assert beyond_anchor(state, starts["0/0/1"]) == pytest.approx(0.0, abs=1e-6)
    full, half = (beyond_anchor(state, starts[name]) for name in ("1/0/1", "0.5/0/1"))
    assert 1e-4 < half < full


@pytest.mark.parametrize("best", STRENGTHS)
def test_the_strength_with_the_lowest_loss_is_for_newcomers_alone(best: float) -> None:
    state = after_one_round()
    after = METHOD.apply_probe_losses(state, losses(best))
    assert after.newcomer_strength == best
    for part, value in products(METHOD.start(after, CARDS["a"])).items():
        assert value.equal(products(METHOD.start(state, CARDS["a"]))[part])
    newcomer = beyond_anchor(after, METHOD.start(after, CARDS["g"]))
    full = beyond_anchor(state, METHOD.start(state, CARDS["g"]))
    assert (newcomer < 1e-6) if best == 0 else (newcomer > 1e-3 and (newcomer < full) == (best < 1))


@pytest.mark.parametrize(("best", "lie"), [(0.0, 1.0), (1.0, 0.0), (0.5, 1.0)])
def test_a_quarter_of_liars_does_not_choose_for_everybody(best: float, lie: float) -> None:
    lies = {name: {one.name: 0.0 if one.strength == lie else 1e6 for one in TRIED} for name in "wxyz"}
    after = METHOD.apply_probe_losses(after_one_round(), losses(best, "abcdefghijkl") | lies)
    assert after.newcomer_strength == best


def test_too_few_scores_or_none_at_all_change_nothing() -> None:
    state = after_one_round()
    assert METHOD.apply_probe_losses(state, losses(0.0, "abc")) is state
    broken = {name: {**one, "0.5/0/1": float("nan")} for name, one in losses(0.0).items()}
    assert METHOD.apply_probe_losses(state, broken) is state
    no_samples = {name: dict.fromkeys(one, 0.0) for name, one in losses(0.0).items()}  # no sample, no loss
    assert METHOD.apply_probe_losses(state, no_samples) is state
    assert replace(METHOD, probe_clients=0).probe_starts(state, KNOWN, 1) == {}
    assert METHOD.probe_starts(state, KNOWN[:3], 1) == {}


def test_one_head_generator_serves_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    fit = HeadGenerator.fit
    monkeypatch.setattr(HeadGenerator, "fit", lambda *given: made.append(len(given[0])) or fit(*given))
    method = replace(METHOD, head_share=0.5, head_scale=0.25)
    told = {card.client_id: make_statistics(card.client_id, counts=(5, 4, 6)) for card in KNOWN}
    state = method.with_statistics(after_one_round(), told)
    tried = method.probe_starts(state, KNOWN, 3)
    mixtures = [at_scale(0.5, 0.25, factor) for factor in FACTORS]
    names = ["0/0/1", *(f"{strength:g}/{share:g}/{scale:g}" for strength in STRENGTHS for share, scale in mixtures)]
    assert all(list(starts) == names for starts in tried.values())
    assert all(not torch.equal(starts["0/0/1"].head, starts["0/0.5/0.25"].head) for starts in tried.values())
    assert made == [len(KNOWN)]


@pytest.mark.parametrize("best", [1, 2])
def test_the_weight_of_generated_heads_with_the_lowest_loss_is_everybodys(best: int) -> None:
    tried = candidates((0.5, 0.5), deviations=False)
    told = {name: {one.name: float(index != best) for index, one in enumerate(tried)} for name in "abcde"}
    method = replace(METHOD, deviations="off", head_share=0.5, head_scale=0.5)
    statistics = {card.client_id: make_statistics(card.client_id, counts=(5, 4, 6)) for card in KNOWN}
    state = method.with_statistics(after_one_round(), statistics)
    after = method.apply_probe_losses(state, told)
    anchor, generated = 0.5 * 0.5 * state.served_anchor.head, after.head_generator
    assert generated is not None
    own = method.served(replace(state, head_share=1.0, head_scale=1.0), [CARDS["g"]])[0].head
    expected = anchor + 0.5 * 0.5 * 4.0 ** (1 - best) * own
    torch.testing.assert_close(method.served(after, [CARDS["g"]])[0].head[:, :-1], expected[:, :-1])
