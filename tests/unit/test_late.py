"""Rounds that go on after some of their replies: what late ones count, who is asked meanwhile, what is given up."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from flwr.app import Message

from benchmarks.local_grid import LocalGrid
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.train import TrainRequest
from strategies.engine.late import discounted, share_of
from strategies.engine.records import RoundRecord
from strategies.engine.strategy import LoraStrategy
from strategies.methods.base.server import ClientUpdate
from tests.builders import fake_client_app, make_adapter, make_card, make_metrics, products
from tests.unit.test_lora_strategy import CARDS, SETTINGS, _nan, make_strategy

SLOW, DELAY = "client-2", 2
LATE = replace(SETTINGS, replies_per_round=3, evaluate_every=100)


class SlowGrid(LocalGrid):
    """One client takes ``DELAY`` rounds to train, where it was asked to in a round before ``until``."""

    def __init__(self, until: int = 100) -> None:
        super().__init__(fake_client_app(CARDS), {}, 3)
        self.until, self.now = until, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        if any(one.metadata.message_type == TrainRequest.TYPE for one in sent):
            self.now = int(sent[0].content["config"]["server_round"])
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages([one for one in message_ids if not self.works(one)])

    def works(self, message_id: str) -> bool:
        message = self._waiting.get(message_id)
        if message is None or message.metadata.message_type != TrainRequest.TYPE:
            return False
        config = message.content["config"]
        asked = int(config["server_round"])
        return config["client_id"] == SLOW and asked < self.until and self.now < asked + DELAY


class SilentGrid(SlowGrid):
    """That client never answers, and every round takes its time, so that twelve are longer than one may wait."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        time.sleep(0.05)
        return super().push_messages(messages)

    def works(self, message_id: str) -> bool:
        message = self._waiting.get(message_id)
        if message is None or message.metadata.message_type != TrainRequest.TYPE:
            return False
        asked: bool = message.content["config"]["client_id"] == SLOW
        return asked


def made(strategy: LoraStrategy, grid: LocalGrid, rounds: int) -> list[RoundRecord]:
    records: list[RoundRecord] = []
    strategy.start(grid, num_rounds=rounds, timeout=5.0, on_round=records.append)
    return records


def test_a_movement_counts_for_less_the_later_it_comes() -> None:
    start, end = make_adapter(1), make_adapter(2)
    updates = [ClientUpdate(make_card(name), start, end, make_metrics()) for name in ("now", "late")]
    record = RoundRecord(5)
    now, late = discounted(updates, {"now": 5, "late": 2}, record)
    assert record.late == {"late": 3}
    assert now is updates[0]
    share = share_of(3)
    assert share == 0.5
    torch.testing.assert_close(late.end.head, start.head + share * (end.head - start.head))
    whole, first, last = products(late.end), products(start), products(end)
    for kind in start.low_rank:
        wanted = first[kind] + share * (last[kind] - first[kind])
        U, S, Vh = torch.linalg.svd(wanted, full_matrices=False)
        best = U[..., :2] * S[..., None, :2] @ Vh[..., :2, :]
        torch.testing.assert_close(whole[kind], best, rtol=1e-4, atol=1e-4)


def test_a_slow_client_holds_nobody_up_is_not_asked_again_meanwhile_and_counts_when_it_answers() -> None:
    records = made(make_strategy(settings=LATE), SlowGrid(), 12)
    first = next(one.server_round for one in records if SLOW in one.cohort)
    assert all(len(one.cohort) >= 3 for one in records)
    assert not any(SLOW in one.cohort for one in records[first : first + DELAY])
    assert records[first + DELAY - 1].late == {SLOW: DELAY}
    assert not any(one.failures for one in records)
    assert sum(one.training["clients"] for one in records) >= 3 * len(records)


def test_where_nobody_is_slow_only_the_replies_beyond_enough_are_late() -> None:
    records = made(
        make_strategy(settings=replace(LATE, replies_per_round=4)), LocalGrid(fake_client_app(CARDS), {}, 3), 4
    )
    exact = made(
        make_strategy(settings=replace(LATE, replies_per_round=0)), LocalGrid(fake_client_app(CARDS), {}, 3), 4
    )
    assert [one.late for one in records] == [{}] * 4
    assert [one.training for one in records] == [one.training for one in exact]


def test_a_reply_that_never_comes_has_failed_when_its_time_is_over() -> None:
    strategy = make_strategy(settings=replace(LATE, round_timeout=0.3))
    records = made(strategy, SilentGrid(), 12)
    gone = [one.failures.get(f"train {SLOW}") for one in records]
    assert "no reply within the time limit" in gone
    assert not any(one.late for one in records)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"federation.replies-per-round": 9}, "must lie between federation.min-replies 1 and .* 8"),
        ({"federation.replies-per-round": 2, "federation.min-replies": 3}, "must lie between"),
        (
            {"federation.replies-per-round": 2, "method": "fedit"},
            "works with hyperlora: 'fedit' averages whole adapters",
        ),
    ],
)
def test_rounds_that_cannot_go_on_are_refused(values: dict[str, int | str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.parse(values)


def test_replies_that_cannot_be_used_are_not_among_those_that_a_round_waits_for() -> None:
    settings = replace(LATE, clients_per_round=6, replies_per_round=5, min_replies=5)
    for broken in [card.client_id for card in CARDS if card.trains]:
        grid = LocalGrid(fake_client_app(CARDS, {broken: _nan}), {}, 8)
        (record,) = made(make_strategy(settings=settings), grid, 1)
        assert list(record.failures) == [f"train {broken}"]
        assert record.training["clients"] == 5
