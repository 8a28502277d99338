"""10,000 clients, 50 a round, 20 rounds of hyperlora's server, beside a run that has those 50 alone.

The clients are stubs (:mod:`benchmarks.stub_clients`), and their own time is left out. Registration is measured too:
every client's card is read, checked and entered, and signatures are scaled to all of them.
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
from flwr.app import ArrayRecord, ConfigRecord

from benchmarks.local_grid import LocalGrid
from benchmarks.perf.measure import Comparison
from benchmarks.stub_clients import CLASSES, WIDTH, StubClients, initial_adapter
from hyperlora.config.schema import RunConfig, Scalar
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.federation.registrar import Registrar
from strategies.federation.transport import replies_as_they_come
from strategies.methods.registry import build_method

FEW, MANY, ROUNDS = 50, 10_000, 20
WARM_ROUNDS = 5
LIMIT = 60.0
"""Seconds that clients are waited for."""


def run(repeats: int) -> Iterator[Comparison]:
    """Yield CPU seconds per round, of registration, and memory at the last round against round 5; one run each."""
    few, many = _in_own_process(FEW), _in_own_process(MANY)
    a, b = (statistics.median(one["seconds"][WARM_ROUNDS:]) for one in (few, many))
    case = f"hyperlora's server, {MANY:,} clients, {FEW} a round: per round"
    reference = f"{FEW} clients in all"
    series = {"seconds": many["seconds"], "seconds, " + reference: few["seconds"]}
    yield Comparison("many_clients", case, reference, a, b, "s", b / a, "at most 1.5", 1, series)
    joining = few["joining"][0] * MANY / FEW, many["joining"][0]
    case, reference = f"the same, registration of {MANY:,} clients", f"{MANY // FEW} times that of {FEW}"
    yield Comparison("many_clients", case, reference, *joining, "s", joining[1] / joining[0], "", 1)
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
    """Run the rounds with ``clients`` stubs; print CPU seconds of registration and rounds, and memory in MiB."""
    torch.set_num_threads(1)
    figures: dict[str, list[float]] = {"joining": [], "seconds": [], "mebibytes": []}
    stubs = StubClients(clients)
    grid = LocalGrid(stubs.app(), {}, FEW, remembers=False)
    with tempfile.TemporaryDirectory() as folder:
        strategy = server_of(clients, {"run.output-dir": folder})
        began = time.process_time()
        strategy.join(grid)
        figures["joining"].append(time.process_time() - began)
        for server_round in range(1, ROUNDS + 1):
            began, stubs.seconds = time.process_time(), 0.0
            messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
            strategy.aggregate_train(server_round, replies_as_they_come(grid, messages, 600.0))
            figures["seconds"].append(time.process_time() - began - stubs.seconds)
            figures["mebibytes"].append(_anonymous_mebibytes())
    sys.stdout.write(json.dumps(figures) + "\n")


def server_of(clients: int, values: dict[str, Scalar]) -> LoraStrategy:
    """Return hyperlora's server for so many stubs, 50 a round."""
    own: dict[str, Scalar] = {"federation.clients-per-round": FEW, "federation.clients-per-node": clients}
    config = RunConfig.parse({**own, "federation.join-timeout": LIMIT, **values})
    return LoraStrategy(
        build_method(config),
        initial=initial_adapter(),
        registrar=Registrar("fingerprint", 2 * WIDTH + CLASSES + 1, CLASSES),
        settings=RoundSettings.of(config, min_clients=clients),
    )


def _anonymous_mebibytes() -> float:
    """Return the memory of this process that is no page of a file, which the system could take back (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
