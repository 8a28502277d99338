"""Clients without a model, by the thousand: what is measured with them is the server alone.

They move their start a little, describe made-up classes and report made-up scores. Adapters have the shapes of
digits-vit, r = 4, two blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.perf.made_up_adapters import made_up_adapter
from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.evaluate import EvaluateReply
from hyperlora.messages.signature import ClientCard, SignatureReply
from hyperlora.messages.statistics import StatisticsReply, StatisticsRequest
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import compute_class_statistics
from models.personalization.signature import Signature

WIDTH, CLASSES, SAMPLES = 64, 10, 30
SHAPES = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (128, 64), "mlp.fc2": (64, 128)}
METRICS = TrainMetrics(SAMPLES, 1.0, 1.2, 0.4, 0.9, 0.6, 0.1)


def initial_adapter() -> Adapter:
    """Return the adapter before round 1."""
    return made_up_adapter(0, SHAPES, blocks=2, rank=4, classes=CLASSES)


class StubClients:
    """``count`` clients; ``seconds`` of CPU that they took."""

    def __init__(self, count: int, unseen: int = 0) -> None:
        self._cards = [_card(index, trains=index >= unseen) for index in range(count)]
        self._initial, self.seconds = initial_adapter(), 0.0

    def app(self) -> ClientApp:
        """Return the ClientApp of all nodes."""
        app = ClientApp()

        @app.query("signature")
        def signature(message: Message, context: Context) -> Message:
            index, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
            return Message(SignatureReply(self._cards[index::count], {}).encode(), reply_to=message)

        app.train()(self._answering(self._trained))
        app.query("statistics")(self._answering(self._described))
        app.evaluate()(self._answering(self._scored))
        return app

    def _answering(self, make: Callable[[Message], RecordDict]) -> Callable[[Message, Context], Message]:
        def handler(message: Message, context: Context) -> Message:
            with self._timed():
                return Message(make(message), reply_to=message)

        return handler

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds += time.process_time() - began

    def _trained(self, message: Message) -> RecordDict:
        request = TrainRequest.decode(message.content, self._initial)
        chance = torch.Generator().manual_seed(derive_seed(request.client_id, request.server_round))
        adapter = Adapter.from_tensors(
            {
                name: value + 0.01 * torch.randn(value.shape, generator=chance)
                for name, value in request.start.adapter.tensors().items()
            }
        )
        return TrainReply(request.client_id, request.server_round, adapter, METRICS).encode(request)

    def _described(self, message: Message) -> RecordDict:
        request = StatisticsRequest.decode(message.content, self._initial)
        chance = torch.Generator().manual_seed(derive_seed(request.client_id, "classes"))
        labels = torch.randint(CLASSES, (SAMPLES,), generator=chance)
        features = torch.randn(SAMPLES, WIDTH, generator=chance) + 2.0 * torch.eye(CLASSES, WIDTH)[labels]
        found = compute_class_statistics(features, labels, num_classes=CLASSES, rank=request.rank)
        return StatisticsReply(request.client_id, found).encode()

    def _scored(self, message: Message) -> RecordDict:
        batch = EvaluateBatch.decode(message.content, self._initial)
        return EvaluateReplies([self._score(one.client_id, len(one.steps)) for one in batch.requests]).encode()

    def _score(self, client_id: str, count: int) -> EvaluateReply:
        share = [(derive_seed(client_id, "score") % 1000) / 1000] * count
        return EvaluateReply(client_id, 10, share, [1.0] * count, [1.0] * count, [0.1] * count, 0.01)


def _card(index: int, *, trains: bool) -> ClientCard:
    generator = torch.Generator().manual_seed(index)
    frequencies = torch.rand(CLASSES, generator=generator) + 0.1
    mean, std = torch.randn(WIDTH, generator=generator), torch.rand(WIDTH, generator=generator)
    signature = Signature(mean, std, frequencies / frequencies.sum(), 3.4)
    return ClientCard(f"client-{index:05}", "any", trains, SAMPLES, signature)
