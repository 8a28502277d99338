from __future__ import annotations

from collections.abc import Iterable

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import strategies.federation.transport
from benchmarks.local_grid import LocalGrid
from strategies.federation.transport import AT_A_TIME, replies_as_they_come

COUNT = 2 * AT_A_TIME + 3


def echo() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


class Slow(LocalGrid):
    """Answers a message only when it is asked for the second time; remembers how many were asked for at once."""

    asked: list[int]
    refused: set[str]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        self.asked.append(len(ids))
        ready = [one for one in ids if one in self.refused]
        self.refused |= set(ids)
        return super().pull_messages(ready)


def slow_grid() -> Slow:
    grid = Slow(echo(), {}, 1, remembers=False)
    grid.asked, grid.refused = [], set()
    return grid


def messages(grid: LocalGrid) -> list[Message]:
    return [Message(RecordDict(), grid.get_node_ids()[0], "train") for _ in range(COUNT)]


def test_every_message_is_answered_once_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies.federation.transport, "FIRST_PAUSE", 0.0)
    grid = slow_grid()
    sent = messages(grid)
    metadata = [one.metadata for one in sent]
    answered = [one.metadata.reply_to_message_id for one in replies_as_they_come(grid, sent, 60.0)]
    assert sorted(answered) == sorted(one.message_id for one in metadata)
    assert len(grid.asked) == 2 * 3
    assert max(grid.asked) == AT_A_TIME
    assert sent == []
    assert grid.sent == []


def test_replies_come_before_all_are_there() -> None:
    grid = LocalGrid(echo(), {}, 1)
    first = next(iter(replies_as_they_come(grid, messages(grid), 60.0)))
    assert first.has_content()
    assert len(list(grid.pull_messages([str(index) for index in range(1, COUNT + 1)]))) == COUNT - AT_A_TIME


def test_who_never_answers_is_waited_for_until_the_time_is_over() -> None:
    class Silent(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return []

    grid = Silent(echo(), {}, 1)
    assert list(replies_as_they_come(grid, messages(grid), 0.2)) == []


def test_a_reply_that_flower_cannot_read_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            ids = list(message_ids)
            if "2" in ids:
                raise ValueError("Expecting value: line 1 column 1 (char 0)")  # json, of an object that is none
            return super().pull_messages(ids)

    monkeypatch.setattr(strategies.federation.transport, "FIRST_PAUSE", 0.0)
    grid = Broken(echo(), {}, 1)
    answered = [one.metadata.reply_to_message_id for one in replies_as_they_come(grid, messages(grid), 0.5)]
    assert sorted(map(int, answered)) == [one for one in range(1, COUNT + 1) if one != 2]
