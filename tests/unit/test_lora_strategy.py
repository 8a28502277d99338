"""The round loop on an in-process Grid: messages, accounting, faults; no model, milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.serverapp.strategy import Strategy

from benchmarks.local_grid import LocalGrid
from hyperlora.messages.batch import EvaluateBatch
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.messages.train import TrainReply, TrainRequest
from models.personalization.synthesizer import Synthesizer
from strategies.engine.evaluation import NOT_ASKED
from strategies.engine.records import RoundRecord
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.federation.registrar import Registrar
from strategies.federation.roster import FederationError
from strategies.federation.transport import error_sentence
from strategies.methods.base.server import ClientUpdate
from strategies.methods.fedit import FedIT
from strategies.methods.flexlora import FlexLoRA
from strategies.methods.hyperlora.server import HyperLoraMethod
from tests.builders import (
    CLASSES,
    RANK,
    SIGNATURE_SIZE,
    Spoil,
    assert_same_products,
    fake_client_app,
    make_adapter,
    make_card,
    make_metrics,
    moved,
    same_products,
)
from tests.sites import PartlySilentGrid

CARDS = [make_card(f"client-{index}", trains=index < 6) for index in range(8)]
SETTINGS = RoundSettings(
    clients_per_round=4,
    local_steps=10,
    evaluate_steps=(0, 10),
    evaluate_every=2,
    seed=0,
    min_clients=8,
    join_timeout=0.2,
    round_timeout=5.0,
)


def make_strategy(method=None, settings: RoundSettings = SETTINGS) -> LoraStrategy:
    registrar = Registrar("fingerprint", SIGNATURE_SIZE, CLASSES)
    method = method or HyperLoraMethod(synthesizer=Synthesizer(1.0, 1.0))
    return LoraStrategy(method, initial=make_adapter(0, fresh=True), registrar=registrar, settings=settings)


def run(strategy: LoraStrategy, rounds: int, spoil: dict[str, Spoil] | None = None, nodes: int = 3):
    grid = LocalGrid(fake_client_app(CARDS, spoil), {}, nodes)
    records: list[RoundRecord] = []
    strategy.start(grid, num_rounds=rounds, timeout=5.0, on_round=records.append)
    return grid, records


def starts_of(grid: LocalGrid, server_round: int) -> dict[str, object]:
    fresh = make_adapter(0, fresh=True)
    return {
        str(message.content["config"]["client_id"]): TrainRequest.decode(message.content, fresh).start.adapter
        for message in grid.sent
        if message.metadata.message_type == TrainRequest.TYPE
        and message.content["config"]["server_round"] == server_round
    }


DESCRIBED = HyperLoraMethod(deviations="off", scatter_rank=4, head_share=0.5)


def evaluated_heads(grid: LocalGrid) -> dict[str, torch.Tensor]:
    fresh = make_adapter(0, fresh=True)
    evaluated = [message.content for message in grid.sent if message.metadata.message_type == EvaluateBatch.TYPE]
    requests = [one for content in evaluated for one in EvaluateBatch.decode(content, fresh).requests]
    return {request.client_id: request.start.adapter.head for request in requests if request.track == START_TRACK}


def test_clients_train_the_anchor_and_are_served_heads_of_their_own() -> None:
    strategy = make_strategy(DESCRIBED)
    grid, records = run(strategy, rounds=2)
    trained = list(starts_of(grid, 2).values())
    assert all(same_products(start, trained[0]) for start in trained)
    heads = list(evaluated_heads(grid).values())
    assert len(heads) == len(CARDS)
    assert all(not torch.allclose(heads[0], other) for other in heads[1:])
    assert records[1].bytes["statistics_up"] > 0
    assert sorted(strategy.state.class_statistics) == sorted(card.client_id for card in CARDS)
    assert set(strategy.state.head_generator.names) == {card.client_id for card in CARDS if card.trains}


def broken_counts(answer: Message) -> Message:
    arrays = answer.content["arrays"]
    answer.content["arrays"] = ArrayRecord({**arrays, "counts": Array(np.full(CLASSES, -1, np.float32))})
    return answer


def test_broken_class_statistics_cost_their_own_client_only() -> None:
    strategy = make_strategy(DESCRIBED)
    grid = LocalGrid(fake_client_app(CARDS, None, broken_counts), {}, 3)
    records: list[RoundRecord] = []
    strategy.start(grid, num_rounds=2, timeout=5.0, on_round=records.append)
    assert "negative" in records[1].failures["statistics client-0"]
    assert sorted(strategy.state.class_statistics) == sorted(card.client_id for card in CARDS[1:])
    heads = evaluated_heads(grid)
    assert sorted(heads) == sorted(card.client_id for card in CARDS)
    assert all(not torch.allclose(heads["client-0"], head) for name, head in heads.items() if name != "client-0")


def many_counts(answer: Message) -> Message:
    arrays = answer.content["arrays"]
    answer.content["arrays"] = ArrayRecord({**arrays, "counts": Array(np.full(CLASSES, 500, np.float32))})
    return answer


def test_class_statistics_of_more_samples_than_the_card_tells_are_left_out() -> None:
    strategy = make_strategy(DESCRIBED)
    grid = LocalGrid(fake_client_app(CARDS, None, many_counts), {}, 3)
    strategy.start(grid, num_rounds=2, timeout=5.0)
    failures = strategy.record.failures
    assert failures == {"statistics client-0": "its class statistics count 1500 samples, and it said it has 10"}
    assert "client-0" not in strategy.state.class_statistics


def test_class_statistics_are_of_one_anchor_and_dropped_when_it_moves() -> None:
    strategy = make_strategy(DESCRIBED)
    run(strategy, rounds=3)
    assert set(strategy.state.class_statistics)
    update = ClientUpdate(CARDS[0], strategy.state.anchor, moved(strategy.state.anchor, "a", 9), make_metrics())
    assert not strategy.method.aggregate(strategy.state, [update]).class_statistics


def test_clients_of_one_round_receive_different_adapters() -> None:
    grid, _ = run(make_strategy(), rounds=3)
    starts = list(starts_of(grid, 3).values())
    assert len(starts) == 4
    pairs = [(one, other) for index, one in enumerate(starts) for other in starts[:index]]
    assert not any(same_products(one, other) for one, other in pairs)


def test_flowers_own_loop_loses_nothing() -> None:
    """Waiting, probes, alternatives and scores are in the hooks, not in our loop."""
    settings = replace(SETTINGS, evaluate_every=1, num_rounds=3)
    method = HyperLoraMethod(synthesizer=Synthesizer(1.0, 1.0), probe_clients=4)
    own_loop, flowers_loop = make_strategy(method, settings), make_strategy(method, settings)
    run(own_loop, rounds=3)
    grid = LocalGrid(fake_client_app(CARDS), {}, 3)
    Strategy.start(flowers_loop, grid, initial_arrays=ArrayRecord(), num_rounds=3, timeout=5.0)
    assert own_loop.scores == flowers_loop.scores
    assert {score.track for score in flowers_loop.scores} == {"start", "anchor"}
    assert flowers_loop.record.bytes["probe_up"] > 0
    last = [one for one in grid.sent if (one.metadata.message_type, one.metadata.group_id) == (EvaluateBatch.TYPE, "3")]
    assert len(last) == len(CARDS) + 4  # one message for each client, start and anchor in it, and one for each prober
    assert torch.equal(own_loop.state.anchor.head, flowers_loop.state.anchor.head)


def test_every_message_has_a_content_of_its_own() -> None:
    grid, _ = run(make_strategy(FlexLoRA()), rounds=1)
    assert len({id(message.content) for message in grid.sent}) == len(grid.sent)


def test_seen_clients_train_and_all_are_evaluated() -> None:
    _, records = run(make_strategy(), rounds=4)
    assert all(set(record.cohort) <= {card.client_id for card in CARDS if card.trains} for record in records)
    assert [bool(record.evaluation) for record in records] == [False, True, False, True]
    assert records[1].evaluation["seen"]["clients"] == 6
    assert records[1].evaluation["unseen"]["clients"] == 2
    assert records[1].evaluation["unseen"]["k_step"]["mean"] == pytest.approx(0.8)


@pytest.mark.parametrize("nodes", [1, 2, 8, 11])
def test_the_number_of_nodes_changes_nothing(nodes: int) -> None:
    strategy, reference = make_strategy(), make_strategy()
    _, records = run(strategy, rounds=2, nodes=nodes)
    _, expected = run(reference, rounds=2, nodes=3)
    assert [record.cohort for record in records] == [record.cohort for record in expected]
    assert torch.equal(strategy.state.anchor.head, reference.state.anchor.head)


def test_bytes_are_those_of_the_messages() -> None:
    grid, records = run(make_strategy(), rounds=1, nodes=8)
    train = [message for message in grid.sent if message.metadata.message_type == TrainRequest.TYPE]
    raw = sum(len(array.data) for message in train for array in message.content["arrays"].values())
    assert raw <= records[0].bytes["train_down"] <= 1.2 * raw
    assert records[0].bytes["train_up"] > 0


def _raise(answer: Message, request: TrainRequest) -> Message:
    raise RuntimeError("the disk is full")


def _nan(answer: Message, request: TrainRequest) -> Message:
    answer.content["arrays"]["head"] = Array(np.full_like(request.start.adapter.head.numpy(), np.nan))
    return answer


def _other_client(answer: Message, request: TrainRequest) -> Message:
    answer.content["config"]["client_id"] = "client-0"
    return answer


def _empty(answer: Message, request: TrainRequest) -> Message:
    answer.content.clear()
    return answer


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (_raise, "the disk is full"),
        (_nan, "NaN"),
        (_other_client, "expected client"),
        (_empty, "holds no ConfigRecord"),
    ],
)
def test_a_broken_client_costs_its_own_contribution_only(fault: Callable, sentence: str) -> None:
    strategy = make_strategy(FlexLoRA())
    broken = run(make_strategy(), rounds=1)[1][0].cohort[-1]
    _, records = run(strategy, rounds=1, spoil={broken: fault})
    assert list(records[0].failures) == [f"train {broken}"]
    assert sentence in records[0].failures[f"train {broken}"]
    initial = make_adapter(0, fresh=True)
    updates = [
        ClientUpdate(make_card(name), initial, moved(initial, name, 1), make_metrics())
        for name in records[0].cohort
        if name != broken
    ]
    assert_same_products(strategy.state, FlexLoRA().aggregate(initial, updates))


def _swollen(answer: Message, request: TrainRequest) -> Message:
    answer.content["more"] = ArrayRecord({"more": Array(np.zeros(2**24 + 1, dtype=np.float32))})
    return answer


def _crowded(answer: Message, request: TrainRequest) -> Message:
    for number in range(9):
        answer.content[f"record {number}"] = ArrayRecord()
    return answer


def test_a_reply_beyond_its_quota_is_not_decoded() -> None:
    cohort = run(make_strategy(), rounds=1)[1][0].cohort
    _, records = run(make_strategy(), rounds=1, spoil={cohort[0]: _swollen, cohort[1]: _crowded})
    assert records[0].failures[f"train {cohort[0]}"].endswith("at most 67108864 are expected for this request")
    assert "records, at most 8 are expected" in records[0].failures[f"train {cohort[1]}"]


def test_a_round_in_which_everybody_fails_changes_nothing() -> None:
    strategy = make_strategy(FlexLoRA())
    _, records = run(strategy, rounds=1, spoil={card.client_id: _raise for card in CARDS})
    assert len(records[0].failures) == 4
    assert records[0].training == {}
    assert torch.equal(strategy.state.head, make_adapter(0, fresh=True).head)


def test_fewer_replies_than_the_quorum_change_nothing_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    strategy = make_strategy(FlexLoRA(), replace(SETTINGS, min_replies=3))
    cohort = run(make_strategy(), rounds=1)[1][0].cohort
    _, records = run(strategy, rounds=1, spoil={cohort[0]: _raise, cohort[1]: _changed, cohort[2]: _nan})
    sentence = "2 of 4 clients sent a reply that can be used, federation.min-replies is 3: the round changes nothing"
    assert records[0].failures["round"] == sentence
    assert (records[0].training, records[0].drift) == ({}, {})
    assert torch.equal(strategy.state.head, make_adapter(0, fresh=True).head)
    assert "round 1 changes nothing: 2 of 4 clients" in caplog.text


def test_a_client_that_was_away_when_the_run_was_resumed_is_still_known() -> None:
    first, second = make_strategy(), make_strategy(settings=replace(SETTINGS, min_clients=1))
    run(first, rounds=3)
    away = sorted(first.state.memory)[0]
    second.resume(first.checkpoint())
    there = [card for card in CARDS if card.client_id != away]
    second.start(LocalGrid(fake_client_app(there), {}, 3), num_rounds=4, start_round=4)
    assert away in second.state.memory
    assert away in second.final_adapters()
    assert list(second.history.cohorts) == [1, 2, 3, 4]
    assert not second.record.failures


def test_a_signature_that_changed_while_the_server_was_stopped_is_noticed_and_counted() -> None:
    first, second = make_strategy(), make_strategy()
    run(first, rounds=1)
    second.resume(first.checkpoint())
    changed = [make_card(CARDS[0].client_id, seed=77), *CARDS[1:]]
    records: list[RoundRecord] = []
    grid = LocalGrid(fake_client_app(changed), {}, 3)
    second.start(grid, num_rounds=3, start_round=2, on_round=records.append)
    assert list(records[0].drift) == [CARDS[0].client_id]
    assert records[0].drift[CARDS[0].client_id] > 0.1
    assert records[1].drift == {}
    assert second.history.signatures == {CARDS[0].client_id: 2}


def test_a_client_that_never_answers_is_named() -> None:
    strategy = make_strategy()
    grid = LocalGrid(fake_client_app(CARDS), {}, 3)
    strategy.join(grid)
    messages = strategy.configure_train(1, None, None, grid)
    replies = list(grid.send_and_receive(messages))
    strategy.aggregate_train(1, replies[1:])
    assert list(strategy.record.failures.values()) == ["no reply within the time limit"]


def test_a_dead_client_delays_few_rounds_and_is_named_where_it_is_not_asked() -> None:
    strategy = make_strategy(settings=replace(SETTINGS, clients_per_round=6, evaluate_every=1))
    grid, records = PartlySilentGrid(fake_client_app(CARDS), {}, 8), []

    def on_round(record: RoundRecord) -> None:
        grid.silent = frozenset({1})  # client-0, from round 2 on
        records.append(record)

    strategy.start(grid, num_rounds=12, timeout=5.0, on_round=on_round)
    waited_for = [record.server_round for record in records if "client-0" in record.cohort]
    assert waited_for == [1, 2, 4, 7, 12]
    assert grid.asked(1) == 1 + 2 + 4  # signature, round 1, then training alone
    assert [record.failures.get("evaluate client-0") for record in records] == [None] + 11 * [NOT_ASKED]
    assert records[2].evaluation["seen"]["clients"] == 5


def test_where_every_node_was_silent_all_are_asked_again_at_once() -> None:
    strategy = make_strategy(settings=replace(SETTINGS, clients_per_round=6))
    grid, records = PartlySilentGrid(fake_client_app(CARDS), {}, 1), []
    for silent in (frozenset({1}), frozenset()):
        strategy.join(grid)
        grid.silent = silent
        messages = strategy.configure_train(1, None, None, grid)
        strategy.aggregate_train(1, grid.send_and_receive(messages))
        records.append(strategy.record)
    assert [len(record.failures) for record in records] == [6, 0]


def test_too_few_clients_is_one_sentence_with_the_numbers() -> None:
    with pytest.raises(FederationError, match=r"expected 9 clients within 0\.2 s, 8 can take part"):
        run(make_strategy(settings=replace(SETTINGS, min_clients=9)), rounds=1)


def test_a_cohort_larger_than_the_training_clients_is_refused() -> None:
    with pytest.raises(FederationError, match="clients-per-round is 7, but only 6 clients train"):
        run(make_strategy(settings=replace(SETTINGS, clients_per_round=7)), rounds=1)


def test_a_second_node_cannot_take_a_client_over() -> None:
    strategy = make_strategy(settings=replace(SETTINGS, min_clients=6))
    twins = [CARDS[0], *CARDS[:6]]
    strategy.join(LocalGrid(fake_client_app(twins), {}, 7))
    assert strategy.roster.nodes["client-0"] == 1
    assert "claims client 'client-0'" in strategy.roster.left_out["node 2"]


def _changed(answer: Message, request: TrainRequest) -> Message:
    told = TrainReply.decode(answer.content, request)
    answer.content = replace(told, signature=make_card("somewhere else").signature).encode()
    return answer


def test_a_client_whose_data_changed_is_described_anew_and_named() -> None:
    strategy = make_strategy()
    changed = run(make_strategy(), rounds=1)[1][0].cohort[0]
    _, records = run(strategy, rounds=1, spoil={changed: _changed})
    assert list(records[0].drift) == [changed]
    assert records[0].drift[changed] > 0.1
    expected = make_card("somewhere else").signature.vector()
    torch.testing.assert_close(strategy.roster.cards[changed].signature.vector(), expected)


def _changed_to_very_many(answer: Message, request: TrainRequest) -> Message:
    told = TrainReply.decode(_changed(answer, request).content, request)
    answer.content = replace(told, metrics=replace(told.metrics, num_examples=10**18)).encode()
    return answer


def test_a_reply_that_is_left_out_changes_nothing_that_is_known_of_its_client() -> None:
    strategy = make_strategy()
    liar = run(make_strategy(), rounds=1)[1][0].cohort[0]
    _, records = run(strategy, rounds=1, spoil={liar: _changed_to_very_many})
    assert list(records[0].failures) == [f"train {liar}"]
    assert records[0].drift == {}
    card = next(card for card in CARDS if card.client_id == liar)
    assert strategy.roster.cards[liar].num_examples == card.num_examples
    assert strategy.roster.cards[liar].signature.digest() == card.signature.digest()
    assert liar not in strategy.state.memory


def test_a_signature_that_was_released_counts_for_privacy_even_if_the_reply_is_left_out() -> None:
    strategy = make_strategy()
    liar = run(make_strategy(), rounds=1)[1][0].cohort[0]
    run(strategy, rounds=1, spoil={liar: _changed_to_very_many})
    assert strategy.history.signatures == {liar: 2}


def test_a_signature_that_is_the_same_is_no_drift() -> None:
    _, records = run(make_strategy(), rounds=2)
    assert all(record.drift == {} for record in records)


def _broken_signature(answer: Message, request: TrainRequest) -> Message:
    answer = _changed(answer, request)
    answer.content["signature"]["signature"] = Array(np.ones(3, dtype=np.float32))
    return answer


def test_a_broken_signature_costs_its_own_contribution_only() -> None:
    broken = run(make_strategy(), rounds=1)[1][0].cohort[0]
    _, records = run(make_strategy(), rounds=1, spoil={broken: _broken_signature})
    assert list(records[0].failures) == [f"train {broken}"]
    assert records[0].drift == {}


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("<class 'a.X'>:<'it has no data'>", "it has no data (error code 2)"),
        ("<class 'X'>:<'\nException ClientAppException occurred. Message: it is empty'>", "it is empty (error code 2)"),
        ("Traceback\n  line\nValueError: it is empty\n", "ValueError: it is empty (error code 2)"),
        ("", "the client failed (error code 2)"),
        ("X: \x1b[2Jforged\x07", "X:  [2Jforged  (error code 2)"),
        ("x" * 5_000_000, f"{'x' * 197}... (error code 2)"),
    ],
)
def test_what_a_client_said_is_one_sentence(reason: str, sentence: str) -> None:
    grid = LocalGrid(fake_client_app(CARDS), {}, 1)
    strategy = make_strategy()
    strategy.join(grid)
    asked = strategy.configure_train(1, None, None, grid)[0]
    assert error_sentence(Message(Error(code=2, reason=reason), reply_to=asked)) == sentence


def test_a_client_of_very_many_samples_counts_for_ten_times_the_median_of_all_that_are_known() -> None:
    """Its reply says what its card says: the bound is the federation's, whoever is in the cohort."""
    greedy = run(make_strategy(), rounds=1)[1][0].cohort[0]
    cards = [make_card(greedy, num_examples=10**9) if card.client_id == greedy else card for card in CARDS]
    strategy = make_strategy()
    grid = LocalGrid(fake_client_app(cards, {greedy: _telling_very_many}), {}, 3)
    strategy.start(grid, num_rounds=1, timeout=5.0)
    assert strategy.state.num_examples[greedy] == 100
    assert set(strategy.state.num_examples.values()) == {10, 100}


def _telling_very_many(answer: Message, request: TrainRequest) -> Message:
    told = TrainReply.decode(answer.content, request)
    answer.content = replace(told, metrics=replace(told.metrics, num_examples=10**9)).encode()
    return answer


def _long_text(answer: Message, request: TrainRequest) -> Message:
    answer.content["config"]["server_round"] = "\n\x1b" + "x" * 5_000_000
    return answer


def test_a_broken_reply_cannot_forge_or_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    liar = run(make_strategy(), rounds=1)[1][0].cohort[0]
    _, records = run(make_strategy(), rounds=1, spoil={liar: _long_text})
    assert len(records[0].failures[f"train {liar}"]) <= 400
    assert len(caplog.text) < 5_000
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("wire", ["float16", "int8"])
def test_a_narrow_wire_gives_nearly_the_same_rounds(wire: str) -> None:
    exact, narrow = make_strategy(FlexLoRA()), make_strategy(FlexLoRA(), replace(SETTINGS, wire=wire))
    records = [run(strategy, 2)[1] for strategy in (exact, narrow)]
    assert not records[1][-1].failures
    assert_same_products(exact.state, narrow.state, 0.1)


def _with_a_low_rank(strategy: LoraStrategy) -> LocalGrid:
    cards = [replace(card, rank=1) if card.client_id == "client-1" else card for card in CARDS]
    strategy.registrar.required_rank = RANK
    return LocalGrid(fake_client_app(cards), {}, 3)


def test_a_client_of_a_lower_rank_is_left_out_before_round_1_where_all_need_one_rank() -> None:
    strategy = make_strategy(FedIT(), replace(SETTINGS, min_clients=7))
    records: list[RoundRecord] = []
    strategy.start(_with_a_low_rank(strategy), num_rounds=2, timeout=5.0, on_round=records.append)
    reason = "it trains adapters of rank 1, and this method needs rank 2 of every client"
    assert strategy.roster.left_out == {"client 'client-1'": reason}
    assert not any(record.failures or "client-1" in record.cohort for record in records)


def test_a_client_that_declares_a_lower_rank_when_a_run_goes_on_is_left_out() -> None:
    before = make_strategy(FedIT())
    run(before, rounds=1)
    strategy = make_strategy(FedIT(), replace(SETTINGS, min_clients=7))
    strategy.resume(before.checkpoint())
    records: list[RoundRecord] = []
    grid = _with_a_low_rank(strategy)
    strategy.start(grid, num_rounds=3, timeout=5.0, start_round=2, on_round=records.append)
    assert "client 'client-1'" in strategy.roster.left_out
    assert not any(record.failures or "client-1" in record.cohort for record in records)


def test_an_evaluation_asks_as_many_clients_as_are_set_and_the_last_one_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.engine.requests.AT_A_TIME", 3)
    strategy = make_strategy(settings=replace(SETTINGS, evaluate_every=1, evaluate_clients=4))
    _, records = run(strategy, 3)
    asked = [sum(group["clients"] for name, group in one.evaluation.items() if " " not in name) for one in records]
    assert asked == [4, 4, 8]
    assert records[-1].bytes["evaluate_up"] > 1.9 * records[0].bytes["evaluate_up"]


def test_clients_that_are_evaluated_in_portions_get_the_scores_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, in_portions = make_strategy(), make_strategy()
    run(at_once, 2)
    monkeypatch.setattr("strategies.engine.requests.AT_A_TIME", 3)
    run(in_portions, 2)
    assert in_portions.scores == at_once.scores
    assert len(at_once.scores) > len(CARDS)


class Away(LocalGrid):
    """All nodes are away for a while in round 2."""

    rounds, times = 0, 2

    def get_node_ids(self) -> list[int]:
        found = super().get_node_ids()
        self.rounds += 1
        return [] if self.rounds in range(3, 3 + self.times) else found


def test_an_outage_of_all_nodes_is_waited_for_and_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.federation.registrar.POLL_SECONDS", 0.01)
    strategy, records = make_strategy(), list[RoundRecord]()
    strategy.start(Away(fake_client_app(CARDS), {}, 3), num_rounds=4, timeout=5.0, on_round=records.append)
    assert [len(record.cohort) for record in records] == [4] * 4


def test_an_outage_that_lasts_ends_the_run_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.federation.registrar.POLL_SECONDS", 0.05)
    grid = Away(fake_client_app(CARDS), {}, 3)
    grid.times = 10**6
    with pytest.raises(FederationError, match="no client that trains has been connected"):
        make_strategy().start(grid, num_rounds=4, timeout=5.0)
