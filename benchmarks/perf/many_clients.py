"""1,000 clients, 50 a round, 20 rounds of hyperlora's server, beside a run that has those 50 alone.

Adapters have the shapes of digits-vit, r = 4, two blocks. The clients are stubs that move their start a little: 1,797
digits are too few for a thousand clients, and what is measured is the server, without the stubs' own time. Its memory
of deviations lies on disk (``hyperlora.memory-limit``).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.local_grid import LocalGrid
from benchmarks.perf.measure import Comparison
from benchmarks.perf.vit import made_up_adapter
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.signature import ClientCard, SignatureReply
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.personalization.signature import Signature
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.federation.registrar import Registrar
from strategies.federation.transport import replies_as_they_come
from strategies.methods.registry import build_method

FEW, MANY, ROUNDS, WIDTH, CLASSES = 50, 1000, 20, 64, 10
SHAPES = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (128, 64), "mlp.fc2": (64, 128)}
METRICS = TrainMetrics(30, 1.0, 1.2, 0.4, 0.9, 0.6, 0.1)
WARM_ROUNDS = 5


def run(repeats: int) -> Iterator[Comparison]:
    """Yield CPU seconds per round and memory at the last round against round 5; one run each."""
    few, many = _in_own_process(FEW), _in_own_process(MANY)
    a, b = (statistics.median(one["seconds"][WARM_ROUNDS:]) for one in (few, many))
    case = f"hyperlora's server, {MANY:,} clients, {FEW} a round: per round"
    reference = f"{FEW} clients in all"
    series = {"seconds": many["seconds"], "seconds, " + reference: few["seconds"]}
    yield Comparison("many_clients", case, reference, a, b, "s", b / a, "at most 1.5", 1, series)
    first, last = many["mebibytes"][WARM_ROUNDS - 1], many["mebibytes"][-1]
    case = f"the same, memory after round {ROUNDS} (the ratio is the growth in MiB)"
    reference = f"after round {WARM_ROUNDS}"
    series = {"MiB": many["mebibytes"], f"MiB, {FEW} clients in all": few["mebibytes"]}
    yield Comparison("many_clients", case, reference, first, last, "MiB", last - first, "at most 20", 1, series)


def _in_own_process(clients: int) -> dict[str, list[float]]:
    code = f"from benchmarks.perf.many_clients import print_figures; print_figures({clients})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def print_figures(clients: int) -> None:
    """Run the rounds with ``clients`` stubs; print CPU seconds and memory in MiB after each."""
    torch.set_num_threads(1)
    figures: dict[str, list[float]] = {"seconds": [], "mebibytes": []}
    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Scalar] = {"lora.rank": 4, "hyperlora.memory-limit": 64, "run.output-dir": folder}
        settings = RoundSettings(FEW, 10, (0,), 10 * ROUNDS, 0, clients, 60.0, 600.0)
        initial = made_up_adapter(0, SHAPES, blocks=2, rank=4, classes=CLASSES)
        cards = [_card(index) for index in range(clients)]
        registrar = Registrar("fingerprint", 2 * WIDTH + CLASSES + 1, CLASSES)
        strategy = LoraStrategy(
            build_method(RunConfig.parse(values)), initial=initial, registrar=registrar, settings=settings
        )
        stubs = _Stubs(cards, initial)
        grid = LocalGrid(stubs.app(), {}, FEW, remembers=False)
        strategy.join(grid)
        for server_round in range(1, ROUNDS + 1):
            began, stubs.seconds = time.process_time(), 0.0
            messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
            strategy.aggregate_train(server_round, replies_as_they_come(grid, messages, 600.0))
            figures["seconds"].append(time.process_time() - began - stubs.seconds)
            figures["mebibytes"].append(_anonymous_mebibytes())
    sys.stdout.write(json.dumps(figures) + "\n")


def _anonymous_mebibytes() -> float:
    """Return the memory of this process that is no page of a file, which the system could take back (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class _Stubs:
    """Clients that move their start a little; ``seconds`` of CPU that this took."""

    def __init__(self, cards: list[ClientCard], initial: Adapter) -> None:
        self._cards, self._initial, self.seconds = cards, initial, 0.0

    def app(self) -> ClientApp:
        """Return the ClientApp of all nodes."""
        app = ClientApp()

        @app.query("signature")
        def signature(message: Message, context: Context) -> Message:
            index, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
            return Message(SignatureReply(self._cards[index::count], {}).encode(), reply_to=message)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            began = time.process_time()
            answer = Message(self._trained(message), reply_to=message)
            self.seconds += time.process_time() - began
            return answer

        return app

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


def _card(index: int) -> ClientCard:
    generator = torch.Generator().manual_seed(index)
    frequencies = torch.rand(CLASSES, generator=generator) + 0.1
    mean, std = torch.randn(WIDTH, generator=generator), torch.rand(WIDTH, generator=generator)
    signature = Signature(mean, std, frequencies / frequencies.sum(), 3.4)
    return ClientCard(f"client-{index:04}", "any", True, 30, signature)
