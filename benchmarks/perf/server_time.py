"""The server's work, hyperlora beside fedit: a round (starts, replies, aggregation), and what clients are served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.perf.made_up_adapters import DEIT_TINY, made_up_adapter
from benchmarks.perf.measure import Comparison, in_turns
from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.signature import Signature
from strategies.methods.base.server import AsksStatistics, ClientUpdate, Method, served_starts, with_clients
from strategies.methods.registry import build_method

CLIENTS, RANK, BLOCKS, CLASSES, WIDTH, SAMPLES = 100, 4, 4, 7, 192, 200
METRICS = TrainMetrics(100, 1.0, 1.2, 0.4, 0.9, 0.6, 5.0)


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the comparison for 100 clients with DeiT-tiny's last four blocks, r = 4."""
    rounds = {name: Server(name, CLIENTS) for name in ("fedit", "hyperlora")}
    seconds = in_turns({name: one.round for name, one in rounds.items()}, min(repeats, 3))
    fedit, ours = seconds["fedit"], seconds["hyperlora"]
    case = f"hyperlora: server's work in a round of {CLIENTS}"
    yield Comparison("server_time", case, "fedit", fedit, ours, "s", ours / fedit, "at most 3", min(repeats, 3))
    described = rounds["hyperlora"].described()
    serving = {"round": rounds["fedit"].round, "serve": lambda: rounds["hyperlora"].serve(described)}
    seconds = in_turns(serving, min(repeats, 3))
    base, ours = seconds["round"], seconds["serve"]
    case = f"hyperlora: heads for {CLIENTS} clients from their class statistics, before an evaluation"
    yield Comparison("server_time", case, "fedit, a round", base, ours, "s", ours / base, "", min(repeats, 3))


class Server:
    """A method with its state after one round, whose clients answer at once."""

    def __init__(self, name: str, clients: int, *, rank: int = RANK, blocks: int = BLOCKS) -> None:
        self.method: Method = build_method(RunConfig.parse({"method": name, "lora.rank": rank}))
        self.cards, self._rank, self._blocks = [_card(index) for index in range(clients)], rank, blocks
        self.state: Any = self.method.init(self._adapter(0))
        self.state = with_clients(self.method, self.state, {card.client_id: card for card in self.cards})
        self.replies = [self._reply(index) for index in range(clients)]
        self.round()

    def round(self) -> None:
        """Pack a start for every client, read every reply, aggregate."""
        updates = []
        starts = self.method.starts(self.state, self.cards)
        for card, start, content in zip(self.cards, starts, self.replies, strict=True):
            request = TrainRequest(card.client_id, 1, 10, Start(start, self.method.plan(self.state, card)))
            request.encode()
            reply = TrainReply.decode(content, request)
            updates.append(ClientUpdate(card, start, reply.end, reply.metrics, reply.gradient))
        self.state = self.method.aggregate(self.state, updates)

    def described(self) -> dict[str, ClassStatistics]:
        """Return class statistics of made-up samples for every client."""
        return {card.client_id: _statistics(index) for index, card in enumerate(self.cards)}

    def serve(self, statistics: Mapping[str, ClassStatistics]) -> None:
        """Fit the head generator to the clients and make what each is served."""
        assert isinstance(self.method, AsksStatistics)
        served_starts(self.method, self.method.with_statistics(self.state, statistics), self.cards)

    def _reply(self, index: int) -> Any:
        end = self._adapter(index)
        return TrainReply(self.cards[index].client_id, 1, end, METRICS).encode()

    def _adapter(self, seed: int) -> Adapter:
        return made_up_adapter(seed, DEIT_TINY, blocks=self._blocks, rank=self._rank, classes=CLASSES)


def _statistics(index: int) -> ClassStatistics:
    generator = torch.Generator().manual_seed(index)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    features = torch.randn(SAMPLES, WIDTH, generator=generator) + labels[:, None]
    return compute_class_statistics(features, labels, num_classes=CLASSES, rank=16)


def _card(index: int) -> ClientCard:
    generator = torch.Generator().manual_seed(index)
    frequencies = torch.rand(CLASSES, generator=generator) + 0.1
    mean, std = torch.randn(WIDTH, generator=generator), torch.rand(WIDTH, generator=generator)
    return ClientCard(f"client-{index}", "any", True, 100, Signature(mean, std, frequencies / frequencies.sum(), 4.6))
