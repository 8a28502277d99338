"""Small adapters, cards and a ClientApp without a model, for tests that take milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.signature import ClientCard, SignatureReply
from hyperlora.messages.statistics import StatisticsReply, StatisticsRequest
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.signature import Signature

RANK, CLASSES, WIDTH, BLOCKS = 2, 3, 6, 4
SHAPES = {"attn.qkv": (7, 5), "mlp.fc1": (9, 8)}
SIGNATURE_SIZE = 2 * WIDTH + CLASSES + 1


def make_adapter(seed: int, rank: int = RANK, fresh: bool = False) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    low_rank = {
        kind: Factors(
            B=torch.randn(BLOCKS, m, rank, generator=generator) * (0 if fresh else 1),
            A=torch.randn(BLOCKS, rank, n, generator=generator),
        )
        for kind, (m, n) in SHAPES.items()
    }
    return Adapter(low_rank, torch.randn(CLASSES, WIDTH + 1, generator=generator) * (0 if fresh else 1))


def make_card(
    name: str, *, trains: bool = True, num_examples: int = 10, seed: int | None = None, rank: int = 0
) -> ClientCard:
    generator = torch.Generator().manual_seed(sum(map(ord, name)) if seed is None else seed)
    frequencies = torch.rand(CLASSES, generator=generator) + 0.1
    signature = Signature(
        torch.randn(WIDTH, generator=generator),
        torch.rand(WIDTH, generator=generator),
        frequencies / frequencies.sum(),
        float(torch.tensor(float(num_examples)).log()),
    )
    return ClientCard(name, "domain", trains, num_examples, signature, rank)


def make_statistics(name: str, *, counts: tuple[int, ...] = (5, 3, 2), rank: int = WIDTH) -> ClassStatistics:
    """What the classes of a fake client look like, which depends on its name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
    features = torch.randn(len(labels), WIDTH, generator=generator) + 2.0 * torch.eye(CLASSES, WIDTH)[labels]
    return compute_class_statistics(features, labels, num_classes=CLASSES, rank=rank)


def make_metrics(num_examples: int = 10) -> TrainMetrics:
    return TrainMetrics(num_examples, 1.0, 1.2, 0.4, 0.9, 0.6, 0.5)


def products(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {kind: factors.product() for kind, factors in adapter.low_rank.items()} | {"head": adapter.head}


def assert_same_products(left: Adapter, right: Adapter, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(products(left), products(right), rtol=tolerance, atol=tolerance)


def same_products(left: Adapter, right: Adapter, tolerance: float = 1e-4) -> bool:
    mine, other = products(left), products(right)
    return all(torch.allclose(mine[name], other[name], atol=tolerance) for name in mine)


def moved(start: Adapter, name: str, server_round: int) -> Adapter:
    """What a fake client makes of its start: another adapter, that depends on its name and the round."""
    noise = make_adapter(1000 * server_round + sum(map(ord, name)))
    return Adapter.from_tensors({key: value + 0.1 * noise.tensors()[key] for key, value in start.tensors().items()})


Spoil = Callable[[Message, TrainRequest], Message]


def fake_client_app(
    cards: list[ClientCard],
    spoil: dict[str, Spoil] | None = None,
    spoil_statistics: Callable[[Message], Message] | None = None,
) -> ClientApp:
    """A ClientApp whose nodes host ``cards`` in turn.

    ``spoil`` changes the train reply of some clients, ``spoil_statistics`` the class statistics of the first.
    """
    app, fresh = ClientApp(), make_adapter(0, fresh=True)

    @app.query("signature")
    def signature(message: Message, context: Context) -> Message:
        index, count = context.node_config["partition-id"], context.node_config["num-partitions"]
        return Message(SignatureReply(cards[index::count], {}).encode(), reply_to=message)

    @app.query("statistics")
    def statistics(message: Message, context: Context) -> Message:
        request = StatisticsRequest.decode(message.content, fresh)
        made = make_statistics(request.client_id, rank=request.rank)
        answer = Message(StatisticsReply(request.client_id, made).encode(), reply_to=message)
        return spoil_statistics(answer) if spoil_statistics and request.client_id == cards[0].client_id else answer

    @app.train()
    def train(message: Message, context: Context) -> Message:
        request = TrainRequest.decode(message.content, fresh)
        end = moved(request.start.adapter, request.client_id, request.server_round)
        reply = TrainReply(request.client_id, request.server_round, end, make_metrics())
        answer = Message(reply.encode(request), reply_to=message)
        return spoil[request.client_id](answer, request) if spoil and request.client_id in spoil else answer

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        replies = [made_score(request) for request in EvaluateBatch.decode(message.content, fresh).requests]
        return Message(EvaluateReplies(replies).encode(), reply_to=message)

    return app


def made_score(request: EvaluateRequest) -> EvaluateReply:
    """What a client of :func:`fake_client_app` says of an adapter: five test samples, better after local steps."""
    shares = ([0.4, 0.8], [1.0, 0.5], [0.9, 0.6], [0.2, 0.1])
    columns = [column[: len(request.steps)] for column in shares]
    return EvaluateReply(request.client_id, 5, *columns, 0.1)
