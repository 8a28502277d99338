"""A ClientApp for the digits that trains nothing: its replies have the right shapes and take no time."""

from __future__ import annotations

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from hyperlora.config.schema import RunConfig
from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.signature import ClientCard, SignatureReply
from hyperlora.messages.statistics import StatisticsReply, StatisticsRequest
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from hyperlora.seeds import derive_seed
from hyperlora.task import build_model, data_set_info
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import compute_class_statistics
from models.personalization.signature import compute_signature

SAMPLES = 40


def cheap_client_app(config: RunConfig) -> ClientApp:
    """Return an app whose answers follow from client and round alone; a client for each domain, all of them train."""
    app, info = ClientApp(), data_set_info(config.data)
    model, classes = build_model(config.data, config.model, config.lora), len(info.class_names)
    fresh, width = model.fresh_adapter(config.seed), model.backbone.embed_dim
    names = [f"{domain}-0" for domain in info.domains]

    def samples(name: str, *place: str | int) -> tuple[torch.Tensor, torch.Tensor]:
        chance = torch.Generator().manual_seed(derive_seed(name, *place))
        return torch.randn(SAMPLES, width, generator=chance), torch.arange(SAMPLES) % classes

    @app.query("signature")
    def signature(message: Message, context: Context) -> Message:
        hosted = names[int(context.node_config["partition-id"]) :: int(context.node_config["num-partitions"])]
        made = {name: compute_signature(*samples(name), num_classes=classes, smoothing=1.0) for name in hosted}
        cards = [ClientCard(name, name[:-2], True, SAMPLES, one) for name, one in made.items()]
        return Message(SignatureReply(cards, {}).encode(), reply_to=message)

    @app.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        request = StatisticsRequest.decode(message.content, fresh)
        made = compute_class_statistics(
            *samples(request.client_id, request.server_round), num_classes=classes, rank=request.rank
        )
        return Message(StatisticsReply(request.client_id, made).encode(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        request = TrainRequest.decode(message.content, fresh)
        chance = torch.Generator().manual_seed(derive_seed("train", request.client_id, request.server_round))
        moved = {
            name: one + 0.01 * torch.randn(one.shape, generator=chance)
            for name, one in request.start.adapter.tensors().items()
        }
        end = Adapter.from_tensors(moved)
        metrics = TrainMetrics(SAMPLES, 1.0, 1.2, 0.4, 0.9, 0.6, 0.0)
        reply = TrainReply(request.client_id, request.server_round, end, metrics)
        return Message(reply.encode(request), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        replies = [_scored(request) for request in EvaluateBatch.decode(message.content, fresh).requests]
        return Message(EvaluateReplies(replies).encode(), reply_to=message)

    return app


def _scored(request: EvaluateRequest) -> EvaluateReply:
    count, share = len(request.steps), derive_seed(request.client_id, request.track) % 100 / 100
    return EvaluateReply(request.client_id, 5, [share] * count, [1.0] * count, [share] * count, [0.1] * count, 0.0)
