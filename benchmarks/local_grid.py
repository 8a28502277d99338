"""A Flower Grid that calls the ClientApp in this process: the same code and messages, without Ray or processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
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
    """

    def __init__(
        self, client_app: ClientApp, run_config: Mapping[str, bool | float | int | str], num_nodes: int
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.sent: list[Message] = []
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
        """Not offered: messages are answered as they are sent."""
        raise NotImplementedError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not offered: messages are answered as they are sent."""
        raise NotImplementedError("use send_and_receive")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Have every message answered, in order; what a ClientApp raises becomes an error reply."""
        deadline = time.monotonic() + (timeout or float("inf"))
        replies = []
        for message in messages:
            self._take(message)
            if time.monotonic() < deadline:
                replies.append(self._answer(message))
        return replies

    def _take(self, message: Message) -> None:
        """Give a message that is sent its id, as a SuperLink does."""
        message.metadata.__dict__["_message_id"] = str(next(self._ids))
        self.sent.append(message)

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(code=CLIENT_ERROR, reason=str(error)), reply_to=message)


def _context(index: int, num_nodes: int, run_config: Mapping[str, bool | float | int | str]) -> Context:
    return Context(
        run_id=1,
        node_id=index + 1,
        node_config={"partition-id": index, "num-partitions": num_nodes},
        state=RecordDict(),
        run_config=dict(run_config),
    )
