"""The message handlers of a ClientApp: Flower messages into the tasks of :mod:`client_app.tasks` and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from client_app.backbone_store import BackboneMissingError
from client_app.gate import Settings, site_gate
from client_app.peers import read_peers
from client_app.runtime import ClientRuntime
from client_app.site import clients_of, read_site
from client_app.sum_steps import SumSteps
from client_app.tasks import describe_classes, describe_clients, describe_inputs, evaluate_adapter, train_start
from client_app.token_cache import TokenCache
from hyperlora.config.schema import RunConfig
from hyperlora.data.federation import Federation
from hyperlora.messages.backbone import named_backbone
from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.codec import ProtocolError, encode_packed
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.messages.inputs import InputsRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import SignatureReply, SignatureRequest
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.sums import SumRequest
from hyperlora.messages.train import TrainRequest
from models.adapters.adapter import Adapter

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

R = TypeVar("R", InputsRequest, StatisticsRequest, TrainRequest, EvaluateBatch)
ProvideRuntime = Callable[[Context, str], ClientRuntime]
"""Gives the runtime of this process for a node's context and the fingerprint of the server's backbone."""


def make_client_app(
    model: Callable[[], AdaptedModel], federation: Federation, config: RunConfig | None = None
) -> ClientApp:
    """Return a ClientApp for data and a model of your own, with all handlers that the strategies need.

    Args:
        model: makes the frozen backbone with an adapter on it, the same as the server's; called once per process.
        federation: your data: client-ids, class names, and ``load(client_id)``.
        config: method, local budget and optimiser; the defaults where it is None.
    """
    own = OwnRuntime(model, federation, config or RunConfig(), uuid4().hex)
    return app_around(own, own.settings)


@dataclass(frozen=True)
class OwnRuntime:
    """Provides the runtime of a user's data and model; a simulation pickles it for every message.

    Attributes:
        key: under which a process keeps what was made, for all copies of this object.
    """

    model: Callable[[], AdaptedModel]
    federation: Federation
    config: RunConfig
    key: str

    def __call__(self, context: Context, fingerprint: str) -> ClientRuntime:
        """Return the runtime, which is made at the first call in a process."""
        place = (self.key, read_site(context.node_config) is not None)
        if place not in _MADE:
            adapted = self.model()
            cache = TokenCache(adapted, self.federation, self.config.train.prefix_cache_mb * 2**20)
            _MADE[place] = ClientRuntime(self.config, adapted, self.federation, cache, at_site=place[1])
        return _MADE[place]

    def settings(self, context: Context) -> RunConfig:
        """Return the run's configuration."""
        return self.config


_MADE: dict[tuple[str, bool], ClientRuntime] = {}


def app_around(provide: ProvideRuntime, settings: Settings) -> ClientApp:
    """Return a ClientApp that answers all messages of a run with the runtime it is provided.

    Args:
        provide: gives the runtime.
        settings: gives the run's configuration, by which a site judges whether it answers at all.
    """
    app = ClientApp(mods=[site_gate(settings)])

    @app.query("signature")
    def signature(message: Message, context: Context) -> Message:
        return Message(_describe(provide, message, context).encode(), reply_to=message)

    @app.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        runtime, request = _received(StatisticsRequest, provide, message, context)
        return Message(describe_classes(runtime, request, ContextKeeper(context)).encode(), reply_to=message)

    @app.query("inputs")
    def inputs(message: Message, context: Context) -> Message:
        runtime, request = _received(InputsRequest, provide, message, context)
        return Message(describe_inputs(runtime, request).encode(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        runtime, request = _received(TrainRequest, provide, message, context)
        reply = train_start(runtime, request, ContextKeeper(context))
        _leave_copy(runtime, request.client_id, request.start)
        return Message(reply.encode(request), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        runtime, batch = _received(EvaluateBatch, provide, message, context)
        replies = [evaluate_adapter(runtime, request, ContextKeeper(context)) for request in batch.requests]
        for request in batch.requests:
            if request.track == START_TRACK:
                _leave_copy(runtime, request.client_id, request.start)
        return Message(EvaluateReplies(replies).encode(), reply_to=message)

    answer_sums(app, provide, settings)
    return app


def answer_sums(app: ClientApp, provide: ProvideRuntime, settings: Settings) -> None:
    """Have ``app`` answer the steps of secure sums, in runs of sums and in no other."""

    @app.query("sum")
    def one_step(message: Message, context: Context) -> Message:
        request = SumRequest.decode(message.content)
        peers = read_peers(read_site(context.node_config), context.run_id)
        hosting = partial(_hosting, provide, message, context)
        steps = SumSteps(settings(context), context, ContextKeeper(context), hosting, peers)
        return Message(steps.answer(request).encode(), reply_to=message)


def _describe(provide: ProvideRuntime, message: Message, context: Context) -> SignatureReply:
    """Describe the clients that this node hosts; raises ProtocolError where its backbone is not the server's."""
    request = SignatureRequest.decode(message.content)
    try:
        runtime = provide(context, request.fingerprint)
    except BackboneMissingError as error:
        return SignatureReply([], {}, needs_backbone=error.client_id)
    fingerprint = runtime.model.backbone.fingerprint
    if request.fingerprint != fingerprint:
        raise ProtocolError(
            f"this node has another backbone: the server's fingerprint is {request.fingerprint[:12]}, "
            f"this node's '{runtime.config.model.name}' is {fingerprint[:12]}; the node is left out"
        )
    return describe_clients(runtime, clients_of(context.node_config, runtime.federation.client_ids))


def _received(kind: type[R], provide: ProvideRuntime, message: Message, context: Context) -> tuple[ClientRuntime, R]:
    """Return the runtime for a message to one client and its request.

    Raises:
        ProtocolError: there is no such client here, or the run is one of sums, in which clients tell nothing else.
    """
    runtime = provide(context, named_backbone(message.content))
    if runtime.config.privacy.mode == "sums":
        raise ProtocolError("the run is one of sums (privacy.mode): this client tells nothing but its part of a sum")
    request = kind.decode(message.content, runtime.model.fresh_adapter(runtime.config.seed))
    return _hosting(provide, message, context, request.client_id), request


def _hosting(provide: ProvideRuntime, message: Message, context: Context, client_id: str) -> ClientRuntime:
    """Return the runtime for a message to a client; raises ProtocolError where no such client is here."""
    runtime = provide(context, named_backbone(message.content))
    if client_id not in clients_of(context.node_config, runtime.federation.client_ids):
        raise ProtocolError(f"this node does not host client '{client_id}'")
    return runtime


def _leave_copy(runtime: ClientRuntime, client_id: str, start: Start) -> None:
    """Leave the received adapter, as the client uses it, on the disk of a site that keeps files."""
    if runtime.cache.disk is not None:
        runtime.keep_adapter(runtime.with_prior(client_id, start.whole()))


class ContextKeeper:
    """Keeps adapters in the node's Flower context, which lives between messages and never leaves the node."""

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
        self._state[f"kept {client_id}"] = encode_packed(adapter.tensors())
