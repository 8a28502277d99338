"""The ClientApp: translates Flower messages into the tasks of :mod:`client_app.tasks` and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from client_app.site import clients_of, read_site
from client_app.site_store import BackboneMissingError, backbone_store, with_shipped
from client_app.tasks import describe_clients, evaluate_adapter, personal_adapter, train_start
from client_app.workplace import Workplace, open_workplace
from hyperlora.config.schema import RunConfig
from hyperlora.messages.backbone import BackbonePart, BackboneReceipt, named_backbone
from hyperlora.messages.codec import ProtocolError, encode_adapter
from hyperlora.messages.evaluate import START_TRACK, EvaluateRequest
from hyperlora.messages.plan import whole
from hyperlora.messages.signature import SignatureReply, SignatureRequest
from hyperlora.messages.train import TrainRequest
from hyperlora.task import fresh_adapter
from models.adapters.adapter import Adapter

app = ClientApp()


@app.query("signature")
def signature(message: Message, context: Context) -> Message:
    """Describe the clients that this node hosts."""
    request = SignatureRequest.decode(message.content)
    try:
        workplace = _workplace(context, request.fingerprint)
    except BackboneMissingError as error:
        return Message(SignatureReply([], {}, needs_backbone=error.client_id).encode(), reply_to=message)
    own = workplace.model.backbone.fingerprint
    if request.fingerprint != own:
        raise ProtocolError(
            f"this node has another backbone: the server's fingerprint is {request.fingerprint[:12]}, "
            f"this node's '{workplace.config.model.name}' is {own[:12]}; the node is left out"
        )
    reply = describe_clients(workplace, hosted_clients(context, workplace.federation.client_ids))
    return Message(reply.encode(), reply_to=message)


@app.query("backbone")
def backbone(message: Message, context: Context) -> Message:
    """Keep a part of the backbone that the server ships."""
    store = backbone_store(RunConfig.parse(context.run_config), read_site(context.node_config))
    if store is None:
        raise ProtocolError("this node keeps no backbones: it has no state-dir, or weights of its own")
    return Message(BackboneReceipt(store.add(BackbonePart.decode(message.content))).encode(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter of one hosted client."""
    workplace = _workplace(context, named_backbone(message.content))
    request = TrainRequest.decode(message.content, _fresh(workplace))
    _require_hosted(request.client_id, context, workplace)
    reply = train_start(workplace, request, ContextKeeper(context))
    _keep(workplace, request.client_id, whole(request.start, request.plan))
    return Message(reply.encode(request), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score an adapter on the test split of one hosted client."""
    workplace = _workplace(context, named_backbone(message.content))
    request = EvaluateRequest.decode(message.content, _fresh(workplace))
    _require_hosted(request.client_id, context, workplace)
    reply = evaluate_adapter(workplace, request, ContextKeeper(context))
    if request.track == START_TRACK:
        _keep(workplace, request.client_id, whole(request.adapter, request.plan))
    return Message(reply.encode(), reply_to=message)


def hosted_clients(context: Context, client_ids: Sequence[str]) -> list[str]:
    """Return the clients that a node hosts; see :func:`client_app.site.clients_of`."""
    return clients_of(context.node_config, client_ids)


def _require_hosted(client_id: str, context: Context, workplace: Workplace) -> None:
    if client_id not in hosted_clients(context, workplace.federation.client_ids):
        raise ProtocolError(f"this node does not host client '{client_id}'")


def _keep(workplace: Workplace, client_id: str, received: Adapter) -> None:
    workplace.keep_adapter(personal_adapter(workplace, client_id, received))


def _workplace(context: Context, fingerprint: str) -> Workplace:
    config, site = RunConfig.parse(context.run_config), read_site(context.node_config)
    return open_workplace(config, with_shipped(config, site, fingerprint))


def _fresh(workplace: Workplace) -> Adapter:
    return fresh_adapter(workplace.config, workplace.model)


class ContextKeeper:
    """Keeps adapters in the node's Flower context, which lives on between messages and leaves the node never."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def get(self, client_id: str) -> Adapter | None:
        """Return what the client kept, or None."""
        record = self._state.get(f"kept {client_id}")
        if not isinstance(record, ArrayRecord):
            return None
        return Adapter.from_tensors({name: torch.from_numpy(array.numpy()) for name, array in record.items()})

    def put(self, client_id: str, adapter: Adapter) -> None:
        """Keep ``adapter`` in place of what the client kept before."""
        self._state[f"kept {client_id}"] = encode_adapter(adapter)
