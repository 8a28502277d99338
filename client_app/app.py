"""The ClientApp: translates Flower messages into the tasks of :mod:`client_app.tasks` and back."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client_app.tasks import describe_clients, evaluate_adapter, train_start
from client_app.workplace import Workplace, open_workplace
from protocol.config import ConfigError, RunConfig
from protocol.evaluate_messages import EvaluateRequest
from protocol.records import ProtocolError, adapter_shapes
from protocol.signature_messages import SignatureRequest
from protocol.train_messages import TrainRequest

app = ClientApp()


@app.query("signature")
def signature(message: Message, context: Context) -> Message:
    """Describe the clients that this node hosts."""
    workplace = _workplace(context)
    request = SignatureRequest.decode(message.content)
    own = workplace.model.backbone.fingerprint
    if request.fingerprint != own:
        raise ProtocolError(
            f"this node has another backbone: the server's fingerprint is {request.fingerprint[:12]}, "
            f"this node's '{workplace.config.model.name}' is {own[:12]}; the node is left out"
        )
    reply = describe_clients(workplace, hosted_clients(context, workplace.federation.client_ids))
    return Message(reply.encode(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter of one hosted client."""
    workplace = _workplace(context)
    request = TrainRequest.decode(message.content, _shapes(workplace))
    _require_hosted(request.client_id, context, workplace)
    return Message(train_start(workplace, request).encode(request), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score an adapter on the test split of one hosted client."""
    workplace = _workplace(context)
    request = EvaluateRequest.decode(message.content, _shapes(workplace))
    _require_hosted(request.client_id, context, workplace)
    return Message(evaluate_adapter(workplace, request).encode(), reply_to=message)


def hosted_clients(context: Context, client_ids: Sequence[str]) -> list[str]:
    """Return the clients that a simulated node hosts: every ``num-partitions``-th, from ``partition-id`` on.

    Raises:
        ConfigError: the node has no partition.
    """
    index, count = context.node_config.get("partition-id"), context.node_config.get("num-partitions")
    if not isinstance(index, int) or not isinstance(count, int):
        raise ConfigError(
            "the node config names no 'partition-id' and 'num-partitions'; start the node in a simulation "
            "or with --node-config 'partition-id=0 num-partitions=2'"
        )
    return list(client_ids[index::count])


def _require_hosted(client_id: str, context: Context, workplace: Workplace) -> None:
    if client_id not in hosted_clients(context, workplace.federation.client_ids):
        raise ProtocolError(f"this node does not host client '{client_id}'")


def _workplace(context: Context) -> Workplace:
    return open_workplace(RunConfig.parse(context.run_config))


def _shapes(workplace: Workplace) -> dict[str, tuple[int, ...]]:
    return adapter_shapes(workplace.model.extract())
