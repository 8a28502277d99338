"""A Flower Grid that calls the ClientApp in this process: the same code and messages, without Ray or processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_ERROR = 2


class LocalGrid(Grid):
    """Serves ``num_nodes`` simulated nodes one after another.

    Args:
        client_app: the ClientApp of every node.
        run_config: Flower's flat run configuration.
        num_nodes: number of nodes; they host the data set's clients in turn.
        remembers: whether every message stays in ``sent``, for tests.
    """

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        run_config: Mapping[str, bool | float | int | str],
        num_nodes: int,
        *,
        remembers: bool = True,
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.sent: list[Message] = []
        self._remembers, self._waiting = remembers, dict[str, Message]()
        self._client_app, self._ids = client_app, count(1)
        self._contexts = {index + 1: _context(index, num_nodes, run_config) for index in range(num_nodes)}

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """There is no SuperLink and so no Run."""
        raise NotImplementedError("a LocalGrid has no Run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message as ``Message(...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; each is answered when its reply is asked for."""
        ids = []
        for message in messages:
            ids.append(str(next(self._ids)))
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = message
            if self._remembers:
                self.sent.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the messages answered, in order; what a ClientApp raises becomes an error reply."""
        return [self._answer(self._waiting.pop(one)) for one in message_ids if one in self._waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Have every message answered, in order, until the time is over."""
        deadline = time.monotonic() + (timeout or float("inf"))
        replies: list[Message] = []
        for message_id in self.push_messages(messages):
            if time.monotonic() < deadline:
                replies += self.pull_messages([message_id])
        return replies

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(code=CLIENT_ERROR, reason=str(error)), reply_to=message)


def expired(message: Message) -> Message:
    """Return what a SuperLink reports when a message's time is over, without waiting for that."""
    return Message(Error(code=ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason="expired"), reply_to=message)


def _context(index: int, num_nodes: int, run_config: Mapping[str, bool | float | int | str]) -> Context:
    return Context(
        run_id=1,
        node_id=index + 1,
        node_config={"partition-id": index, "num-partitions": num_nodes},
        state=RecordDict(),
        run_config=dict(run_config),
    )
