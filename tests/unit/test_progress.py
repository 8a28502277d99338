"""What is said while a run goes on: how far a phase is, and the time left with the evaluations to come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from hyperlora.clock import clock
from server_app.progress import Pace, ProgressGrid
from strategies.engine.records import RoundRecord


def record(number: int, evaluating: float = 0.0) -> RoundRecord:
    seconds = {"evaluating": evaluating, "waiting": 3.0, "training": 99.0} if evaluating else {"waiting": 3.0}
    return RoundRecord(number, evaluation={"seen": {}} if evaluating else {}, seconds=seconds)


def test_the_time_left_has_the_evaluations_to_come_before_one_was_seen() -> None:
    pace = Pace(rounds=10, evaluate_every=5, evaluation_share=2.5)
    assert pace.left_after(record(1), now=100.0) is None
    assert pace.left_after(record(2), now=104.0) == pytest.approx(8 * 4 + 2 * 2.5 * 4)


def test_the_time_left_goes_by_the_evaluations_that_were_seen() -> None:
    pace = Pace(rounds=10, evaluate_every=4, evaluation_share=2.5)
    pace.left_after(record(3), now=100.0)
    assert pace.left_after(record(4, evaluating=30.0), now=134.0) == pytest.approx(6 * 4 + 2 * 30)
    assert pace.left_after(record(5), now=140.0) == pytest.approx(5 * (4 + 6) / 2 + 2 * 30)


def test_after_the_last_round_nothing_is_left() -> None:
    pace = Pace(rounds=2, evaluate_every=5, evaluation_share=2.5)
    pace.left_after(record(1), now=0.0)
    assert pace.left_after(record(2, evaluating=7.0), now=9.0) == 0.0


class SlowGrid(Grid):
    """Answers one message with every look."""

    def __init__(self, clock: Clock) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.clock, self.waiting = clock, list[str]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.waiting = [str(number) for number, _ in enumerate(messages)]
        return list(self.waiting)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.clock.time += 4.0
        self.waiting.pop()
        return [Message(RecordDict(), dst_node_id=1, message_type="train")]

    def set_run(self, run: Any) -> None: ...
    def create_message(self, *arguments: Any, **named: Any) -> Any: ...
    def get_node_ids(self) -> Iterable[int]:
        return [7]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return []

    @property
    def run(self) -> Any:
        return "the run"


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_long_phase_says_how_far_it_is_and_a_short_one_nothing() -> None:
    now, said = Clock(), list[str]()
    grid = ProgressGrid(SlowGrid(now), said.append, now)
    for kind, count in (("train", 8), ("query.signature", 2)):
        ids = list(grid.push_messages([Message(RecordDict(), dst_node_id=1, message_type=kind) for _ in range(count)]))
        for _ in ids:
            grid.pull_messages(ids)
    assert said == [
        "training: 2 of 8 answered after 0:08, about 0:24 left",
        "training: 7 of 8 answered after 0:28, about 0:04 left",
    ]
    assert (grid.get_node_ids(), grid.run) == ([7], "the run")


def test_the_clock_has_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (5.9, 65, 600)] == ["0:05", "1:05", "10:00"]
