"""Replies one by one as they arrive: the whole round's replies are never in memory together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from models.spilled import Spill
from protocol.train_messages import TrainReply, TrainRequest

AT_A_TIME = 8
ADAPTERS_IN_RAM = 2**28
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0


def replies_as_they_come(grid: Grid, messages: list[Message], timeout: float) -> Iterator[Message]:
    """Send ``messages`` at once and return their replies, as they come, until all have or the time is over.

    As ``Grid.send_and_receive``, but at most ``AT_A_TIME`` replies are fetched before the first of them is used, and
    the messages are let go: ``messages`` is empty after they were sent.

    Args:
        grid: Flower's.
        messages: to send; Flower puts their ids in.
        timeout: seconds from now.
    """
    waiting = [one for one in grid.push_messages(messages) if one]
    messages.clear()
    return _replies(grid, waiting, time.monotonic() + timeout)


def _replies(grid: Grid, waiting: list[str], deadline: float) -> Iterator[Message]:
    pause = FIRST_PAUSE
    while waiting and time.monotonic() < deadline:
        answered: set[str] = set()
        for some in _in_portions(waiting):
            for reply in grid.pull_messages(some):
                answered.add(reply.metadata.reply_to_message_id)
                yield reply
            if time.monotonic() >= deadline:
                break
        waiting = [one for one in waiting if one not in answered]
        if waiting:
            pause = FIRST_PAUSE if answered else min(2 * pause, LONGEST_PAUSE)
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))


def _in_portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + AT_A_TIME] for start in range(0, len(ids), AT_A_TIME))


class Intake:
    """Decodes train replies; of a round's adapters ``ADAPTERS_IN_RAM`` bytes stay in RAM, the others go to disk.

    Attributes:
        seconds: spent on it.
    """

    def __init__(self) -> None:
        self._spill, self.seconds = Spill(ram_limit=ADAPTERS_IN_RAM), 0.0

    def decode(self, content: RecordDict, request: TrainRequest) -> TrainReply:
        """Return the reply to ``request``.

        Raises:
            ProtocolError: as :meth:`protocol.train_messages.TrainReply.decode`.
        """
        began = time.perf_counter()
        try:
            reply = TrainReply.decode(content, request)
            return replace(reply, end=self._spill.keep(reply.end))
        finally:
            self.seconds += time.perf_counter() - began
