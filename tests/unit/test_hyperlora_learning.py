"""Learning of psi and the gates, on a loss that is known: quadratic around a target in product space."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.adapters.adapter import Adapter, subtract
from models.adapters.gradient import GradientSpec, part_vectors
from models.lowrank.factors import Factors
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.config import LEARNABLE as CONFIGURED
from strategies.methods.hyperlora.learning import LEARNABLE, learn
from strategies.methods.hyperlora.server import HyperLoraMethod
from strategies.methods.hyperlora.state import HyperLoraState
from tests.builders import make_adapter, make_card, make_metrics, moved, products

SPEC = GradientSpec("adapter")
CARDS = {name: make_card(name) for name in "abcdef"}
METHOD = HyperLoraMethod(temperature=2.0, gradient_spec=SPEC)
ALL = tuple(LEARNABLE)


def after_one_round() -> HyperLoraState:
    state = METHOD.register(METHOD.init(make_adapter(0)), CARDS)
    updates = [
        ClientUpdate(card, state.anchor, moved(state.anchor, name, 1), make_metrics()) for name, card in CARDS.items()
    ]
    return METHOD.aggregate(state, updates)


def told(state: HyperLoraState, target: dict[str, Adapter]) -> list[ClientUpdate]:
    """Replies of clients whose loss is half the squared distance of their start to their target."""
    updates = []
    for name, card in CARDS.items():
        start = METHOD.start(state, card)
        full = {part: value - products(target[name])[part] for part, value in products(start).items()}
        low_rank = {k: Factors(B=full[k] @ f.A.mT, A=f.B.mT @ full[k]) for k, f in start.low_rank.items()}
        gradient = SPEC.compress(part_vectors(Adapter(low_rank, full["head"])))
        updates.append(ClientUpdate(card, start, start, make_metrics(), gradient))
    return updates


def learned(state: HyperLoraState, target: dict[str, Adapter], steps: int = 15) -> HyperLoraState:
    for _ in range(steps):
        updates = told(state, target)
        state = learn(state, updates, None, spec=SPEC, learning_rate=0.1, groups=ALL)
    return state


def distance(state: HyperLoraState, target: dict[str, Adapter]) -> float:
    gaps = [subtract(METHOD.start(state, CARDS[name]), one) for name, one in target.items()]
    return sum(float(value.square().sum()) for gap in gaps for value in products(gap).values())


def test_clients_that_want_their_own_past_get_more_of_it() -> None:
    state = after_one_round()
    target = {name: moved(make_adapter(0), name, 1) for name in CARDS}
    after = learned(state, target)
    assert float(after.psi["self_logit"]) > float(state.psi["self_logit"]) + 0.3
    assert distance(after, target) < 0.9 * distance(state, target)


def test_the_attention_is_learned_from_the_others_as_if_a_client_had_no_entry() -> None:
    state = after_one_round()
    sharp = replace(state, psi={**state.psi, "log_temperature": torch.tensor(0.1).log()})
    newcomers = {name: make_card(name, seed=sum(map(ord, name))) for name in CARDS}
    target = {name: METHOD.start(without(sharp, name), card) for name, card in newcomers.items()}
    for _ in range(15):
        updates = told(state, target)
        state = learn(state, updates, None, spec=SPEC, learning_rate=0.1, groups=("attention",))
    assert float(state.psi["log_temperature"]) < float(sharp.psi["log_temperature"].new_tensor(2.0).log())
    assert float(state.psi["self_logit"]) == 0.0


def without(state: HyperLoraState, name: str) -> HyperLoraState:
    return replace(state, memory={other: one for other, one in state.memory.items() if other != name})


def test_clients_that_want_the_anchor_get_weaker_deviations() -> None:
    state = after_one_round()
    after = learned(state, dict.fromkeys(CARDS, state.anchor))
    assert float(after.psi["strength"].max()) < 0.5


def test_without_gradients_or_rate_nothing_is_learned() -> None:
    state = after_one_round()
    silent = [ClientUpdate(card, state.anchor, state.anchor, make_metrics()) for card in CARDS.values()]
    assert learn(state, silent, None, spec=SPEC, learning_rate=0.1, groups=ALL) is state
    loud = told(state, dict.fromkeys(CARDS, state.anchor))
    assert learn(state, loud, None, spec=SPEC, learning_rate=0.0, groups=ALL) is state


def test_the_optimiser_goes_on_from_its_state() -> None:
    target = {name: moved(make_adapter(0), name, 1) for name in CARDS}
    once = learned(after_one_round(), target, steps=2)
    again = learned(learned(after_one_round(), target, steps=1), target, steps=1)
    assert all(torch.equal(once.psi[name], again.psi[name]) for name in once.psi)


def test_what_is_not_to_be_learned_stays() -> None:
    state = after_one_round()
    updates = told(state, dict.fromkeys(CARDS, state.anchor))
    after = learn(state, updates, None, spec=SPEC, learning_rate=0.1, groups=("strength",))
    assert torch.equal(after.psi["self_logit"], state.psi["self_logit"])
    assert not torch.equal(after.psi["strength"], state.psi["strength"])


def test_the_names_are_those_of_the_configuration() -> None:
    assert set(LEARNABLE) == set(CONFIGURED)


def test_shuffled_clients_are_described_by_each_other_and_neighbours_do_not_stay_together() -> None:
    names = [f"{domain}-{index}" for domain in ("art", "ink", "map") for index in range(5)]
    cards = {name: make_card(name, seed=place) for place, name in enumerate(names)}
    plain, shuffled = (replace(METHOD, shuffled=one).init(make_adapter(0)) for one in (False, True))
    before = METHOD.register(plain, cards).signature_vectors
    after = replace(METHOD, shuffled=True).register(shuffled, cards).signature_vectors
    owner = {tuple(value.tolist()): name for name, value in before.items()}
    whose = {name: owner[tuple(value.tolist())] for name, value in after.items()}
    assert sorted(whose.values()) == sorted(cards)
    assert len({other.split("-")[0] for name, other in whose.items() if name.startswith("art")}) > 1
