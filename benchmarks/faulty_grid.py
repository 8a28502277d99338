"""A LocalGrid whose clients fail as they are told: each fault is a function, and a chooser says where it strikes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.clientapp import ClientApp

from benchmarks.local_grid import CLIENT_ERROR, LocalGrid, expired
from hyperlora.messages.train import TrainRequest


@dataclass(frozen=True)
class Later:
    """A reply that arrives with those of the next exchange: after the deadline of its own."""

    reply: Message


@dataclass(frozen=True)
class Call:
    """A message on its way to a client.

    Attributes:
        message: the request.
        answer: has the client work and returns its reply.
        previous: the reply that another client sent last, if there is one.
    """

    message: Message
    answer: Callable[[], Message]
    previous: Message | None


Fault = Callable[[Call], Message | Later | None]
"""What becomes of a call: a reply, a late one, or none; what it raises becomes an error reply."""


class FaultyGrid(LocalGrid):
    """Serves as a LocalGrid does, save where ``choose`` returns a fault for a message; keeps no message that it sent.

    Args:
        client_app, run_config, num_nodes: as of a LocalGrid.
        choose: returns the fault that strikes a message, or None.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: Mapping[str, bool | float | int | str],
        num_nodes: int,
        choose: Callable[[Message], Fault | None],
    ) -> None:
        super().__init__(client_app, run_config, num_nodes, remembers=False)
        self._choose = choose
        self._late: list[Message] = []
        self._due: list[Message] = []
        self._previous: Message | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; what was late in the exchange before is due in this one."""
        self._due, self._late = [*self._due, *self._late], []
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the messages answered, in order; late replies of the exchange before come first."""
        replies, self._due = self._due, []
        return replies + [self._outcome(self._waiting.pop(one)) for one in message_ids if one in self._waiting]

    def _outcome(self, message: Message) -> Message:
        fault = self._choose(message)
        if fault is None:
            self._previous = self._answer(message)
            return self._previous
        try:
            outcome = fault(Call(message, lambda: self._answer(message), self._previous))
        except Exception as error:
            return Message(Error(code=CLIENT_ERROR, reason=str(error)), reply_to=message)
        if isinstance(outcome, Later):
            self._late.append(outcome.reply)
        return outcome if isinstance(outcome, Message) else expired(message)


def raises(call: Call) -> Message:
    """The client raises."""
    raise RuntimeError("the client's sensor is broken")


def not_finite(call: Call) -> Message:
    """The client's training diverged: its adapter is NaN."""
    return _changed(call.answer(), lambda values: np.full_like(values, np.nan))


def wrong_shape(call: Call) -> Message:
    """The client's adapter lacks a column."""
    return _changed(call.answer(), lambda values: np.ascontiguousarray(values[..., :-1]))


def anothers(call: Call) -> Message:
    """The client sends what another client sent."""
    if call.previous is None:
        raise RuntimeError("there is no other client whose adapter could be sent")
    return Message(call.previous.content, reply_to=call.message)


def silent(call: Call) -> None:
    """The client never answers."""


def late(call: Call) -> Later:
    """The client answers after the deadline."""
    return Later(call.answer())


def at_random(share: float, seed: int, faults: Iterable[Fault]) -> Callable[[Message], Fault | None]:
    """Return a chooser that strikes a ``share`` of the train messages, each with one of ``faults``, by ``seed``."""
    chance, known = random.Random(seed), tuple(faults)

    def choose(message: Message) -> Fault | None:
        if message.metadata.message_type != TrainRequest.TYPE or chance.random() >= share:
            return None
        return chance.choice(known)

    return choose


def _changed(
    reply: Message, change: Callable[[np.typing.NDArray[np.float32]], np.typing.NDArray[np.float32]]
) -> Message:
    if reply.has_content() and isinstance(record := reply.content["arrays"], ArrayRecord):
        name = next(iter(record))
        record[name] = Array(change(record[name].numpy()))
    return reply
