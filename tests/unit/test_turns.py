"""Domains that train one after the other: cohorts by round, a run that goes on, domains that cannot take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.local_grid import LocalGrid
from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from strategies.engine.records import RoundRecord
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.engine.turns import in_turn
from strategies.federation.registrar import Registrar
from strategies.federation.roster import FederationError
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.server import HyperLoraMethod
from tests.builders import CLASSES, SIGNATURE_SIZE, fake_client_app, make_adapter, make_card, make_metrics, moved

SIZES = {"b": 3, "a": 4, "c": 2}
CARDS = [
    replace(make_card(f"{domain}-{index}", trains=index < size), domain=domain)
    for domain, size in SIZES.items()
    for index in range(size + 1)
]


def settings(**values: int) -> RoundSettings:
    config = RunConfig.parse({f"federation.{name.replace('_', '-')}": value for name, value in values.items()})
    return replace(RoundSettings.of(config, min_clients=len(CARDS)), join_timeout=0.2, round_timeout=5.0)


def run(
    rounds: int,
    cards: Sequence[ClientCard] = CARDS,
    before: LoraStrategy | None = None,
    method: HyperLoraMethod | None = None,
    **values: int,
) -> tuple[LoraStrategy, list[RoundRecord]]:
    values = {"clients_per_round": 3, "domain_rounds": 2, "evaluate_every": 3} | values
    wanted = replace(settings(**values), min_clients=len(cards))
    registrar = Registrar("fingerprint", SIGNATURE_SIZE, CLASSES)
    strategy = LoraStrategy(
        method or HyperLoraMethod(scatter_rank=4),
        initial=make_adapter(0, fresh=True),
        registrar=registrar,
        settings=wanted,
    )
    start_round = 1
    if before is not None:
        strategy.resume(before.checkpoint())
        start_round = before.record.server_round + 1
    records: list[RoundRecord] = []
    grid = LocalGrid(fake_client_app(list(cards)), {}, 3)
    strategy.start(grid, num_rounds=rounds, timeout=5.0, start_round=start_round, on_round=records.append)
    return strategy, records


def cohorts(records: Sequence[RoundRecord]) -> list[list[str]]:
    return [record.cohort for record in records]


def test_domains_train_in_alphabetical_order_and_in_a_cycle_and_a_small_one_brings_all_it_has() -> None:
    strategy, records = run(rounds=8)
    assert [{name[0] for name in cohort} for cohort in cohorts(records)] == [{one} for one in "aabbccaa"]
    assert [len(cohort) for cohort in cohorts(records)] == [3, 3, 3, 3, 2, 2, 3, 3]
    assert not any(record.failures for record in records)
    scored = {score.client_id for score in strategy.scores}
    assert scored == {card.client_id for card in CARDS} == set(strategy.state.class_statistics)


def test_a_run_that_goes_on_draws_the_cohorts_that_it_would_have_drawn() -> None:
    _, whole = run(rounds=7)
    first, head = run(rounds=3)
    _, tail = run(rounds=7, before=first)
    assert cohorts(head) + cohorts(tail) == cohorts(whole)


def test_clients_that_are_away_move_nobody_s_turn_and_an_empty_turn_changes_nothing() -> None:
    first, _ = run(rounds=2)
    there = [card for card in CARDS if card.domain != "b"]
    strategy, records = run(rounds=5, cards=there, before=first)
    assert [len(cohort) for cohort in cohorts(records)] == [0, 0, 2]
    assert {name[0] for name in records[2].cohort} == {"c"}
    assert sorted(strategy.state.memory) == sorted({*first.state.memory, *records[2].cohort})


@pytest.mark.parametrize("remembers", [True, False])
def test_clients_that_are_away_are_served_by_what_they_told_of_their_classes_before(remembers: bool) -> None:
    first, _ = run(rounds=3)
    there = [card for card in CARDS if card.domain != "a"]
    method = replace(first.method, remembers_statistics=remembers)
    strategy, _ = run(rounds=6, cards=there, before=first, method=method)
    told, now = strategy.state.class_statistics, {card.client_id for card in there}
    away = {card.client_id for card in CARDS} - now
    assert set(told) == (now | away if remembers else now)
    assert all(told[name] is first.state.class_statistics[name] for name in away & set(told))
    assert set(strategy.state.head_generator.names) == {card.client_id for card in CARDS if card.trains} & set(told)
    update = ClientUpdate(CARDS[0], strategy.state.anchor, moved(strategy.state.anchor, "b", 9), make_metrics())
    after = method.aggregate(strategy.state, [update])
    assert (strategy.state.told_before, after.class_statistics) == ({}, {})
    assert set(method.forget(after, "b-0").told_before) == (set(told) - {"b-0"} if remembers else set())


def test_without_turns_all_clients_are_drawn_from() -> None:
    clients = {card.client_id: card for card in CARDS if card.trains}
    assert in_turn(clients, CARDS, rounds=0, least=1, server_round=1) == clients
    assert settings().domain_rounds == 0


@pytest.mark.parametrize(
    ("domains", "min_replies", "sentence"),
    [
        ("a", 1, "domain-rounds is 2, but fewer than two domains have 1 clients that train"),
        ("ac", 3, "fewer than two domains have 3 clients that train"),
    ],
)
def test_domains_that_cannot_take_turns_are_refused(domains: str, min_replies: int, sentence: str) -> None:
    with pytest.raises(FederationError, match=sentence):
        run(rounds=1, cards=[card for card in CARDS if card.domain in domains], min_replies=min_replies)


def test_a_client_that_invents_a_domain_takes_no_turn() -> None:
    known = [*CARDS, replace(CARDS[0], client_id="liar", domain="zz")]
    clients = {card.client_id: card for card in known if card.trains}
    turns = [in_turn(clients, known, rounds=1, least=2, server_round=number) for number in range(1, 9)]
    assert all(turns)
    assert not any("liar" in one for one in turns)
