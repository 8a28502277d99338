"""``python -m benchmarks.server_soak``: the server with 10,000 clients, 200 rounds, faults: nothing may grow.

Clients are stubs (:mod:`benchmarks.stub_clients`); a share of their train messages comes to grief. The server registers
them all, evaluates a sample of them every ten rounds, writes checkpoints, and in the last round evaluates everybody.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from benchmarks.faulty_grid import FaultyGrid, at_random, not_finite, raises, silent, wrong_shape
from benchmarks.figures import save
from benchmarks.perf.many_clients import FEW, server_of
from benchmarks.perf.measure import machine
from benchmarks.soak import MOST_GROWTH, Check, Sample, as_table, flat
from benchmarks.stub_clients import StubClients
from strategies.engine.checkpoint import CheckpointStore
from strategies.engine.evaluation import NOT_ASKED
from strategies.engine.records import RoundRecord

RESULT = Path(__file__).parent / "results" / "server_soak.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "server-soak.svg"
EVERY, SCORED = 10, 200
MOST_SLOWER = 0.1
"""Share by which a round of the last quarter may take longer than one of the second."""


@dataclass(frozen=True)
class RoundSample:
    """The server after a round: resident MiB, open files, threads, CPU seconds of the round without the clients'."""

    megabytes: float
    files: int
    threads: int
    seconds: float


@dataclass(frozen=True)
class ServerSoak:
    """What the run left: seconds of registration, a sample per round, failed train messages; of the last evaluation the
    clients that were scored, and those that were not asked, as their node had not answered."""

    joining: float
    samples: list[RoundSample]
    failed: int
    scored: int
    resting: int


def server_soak(rounds: int, clients: int, share: float, seed: int) -> ServerSoak:
    """Make the run."""
    stubs, samples, failed = StubClients(clients, unseen=clients // 5), list[RoundSample](), 0
    choose = at_random(share, seed, (raises, not_finite, wrong_shape, silent))
    grid = FaultyGrid(stubs.app(), {}, FEW, choose)
    with tempfile.TemporaryDirectory(prefix="hyperlora-soak-") as folder:
        own = {"federation.rounds": rounds, "federation.evaluate-every": EVERY, "federation.evaluate-clients": SCORED}
        strategy = server_of(clients, {**own, "run.output-dir": folder, "seed": seed})
        store = CheckpointStore(Path(folder), keep=2)
        began = time.process_time()
        strategy.join(grid)
        joining, began = time.process_time() - began, time.process_time()
        stubs.seconds = 0.0

        def look(record: RoundRecord) -> None:
            nonlocal began, failed
            if record.server_round % EVERY == 0:
                store.save(strategy.checkpoint(), strategy.method.state_classes)
            now, seen = time.process_time(), Sample.take()
            spent = now - began - stubs.seconds
            samples.append(RoundSample(seen.megabytes, seen.files, threading.active_count(), spent))
            failed += sum(name.startswith("train ") for name in record.failures)
            began, stubs.seconds = time.process_time(), 0.0

        strategy.start(grid, num_rounds=rounds, timeout=600.0, on_round=look)
        scored = len({one.client_id for one in strategy.scores})
        resting = sum(reason == NOT_ASKED for reason in strategy.record.failures.values())
        return ServerSoak(joining, samples, failed, scored, resting)


def checks(run: ServerSoak, clients: int, share: float) -> list[Check]:
    """Compare the rounds of the run among each other; those with an evaluation and the last one stand apart."""
    asked = FEW * len(run.samples)
    plain = [one for place, one in enumerate(run.samples, start=1) if place % EVERY]
    return [
        Check("faults that struck", f"about {share:.0%} of {asked:,}", f"{run.failed:,}", run.failed > 0),
        flat("resident memory, MiB", [one.megabytes for one in run.samples], MOST_GROWTH),
        flat("open files", [float(one.files) for one in run.samples], 0.0),
        flat("threads", [float(one.threads) for one in run.samples], 0.0),
        flat("milliseconds of CPU a round, without evaluations", [1000 * one.seconds for one in plain], MOST_SLOWER),
        Check(
            "clients scored in the last round",
            f"{clients:,} less those of nodes that did not answer",
            f"{run.scored:,}, and {run.resting:,} were not asked",
            run.scored + run.resting == clients,
        ),
    ]


def read(path: Path) -> ServerSoak:
    """Return the run that a json file holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    samples = [RoundSample(**one) for one in content["samples"]]
    return ServerSoak(content["joining"], samples, content["failed"], content["scored"], content["resting"])


def draw(run: ServerSoak, target: Path) -> None:
    """Draw the curves of memory, files and threads, and seconds over rounds."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    rounds = range(1, len(run.samples) + 1)
    plain = [(place, one.seconds) for place, one in zip(rounds, run.samples, strict=True) if place % EVERY]
    left, middle, right = figure.subplots(1, 3)
    left.plot(rounds, [one.megabytes for one in run.samples])
    left.set(title="resident memory", ylabel="MiB", ylim=(0, None))
    middle.plot(rounds, [one.files for one in run.samples], label="files")
    middle.plot(rounds, [one.threads for one in run.samples], label="threads", linestyle="--")
    middle.set(title="open files, threads", ylim=(0, None))
    middle.legend(frameon=False)
    right.plot(*zip(*plain, strict=True), linewidth=0.8)
    right.set(title="CPU of the server, a round", ylabel="s", ylim=(0, None))
    for axes in (left, middle, right):
        axes.set_xlabel("round")
        axes.grid(alpha=0.3)
    save(figure, target)


def main(
    rounds: Annotated[int, typer.Option(min=20, help="rounds of the run")] = 200,
    clients: Annotated[int, typer.Option(min=100, help="clients known")] = 10_000,
    share: Annotated[float, typer.Option(min=0, max=1, help="share of train messages that a fault strikes")] = 0.02,
    seed: Annotated[int, typer.Option(help="of cohorts and faults")] = 0,
    to: Annotated[Path, typer.Option(help="the json file to write")] = RESULT,
) -> None:
    """Make the run, print the table, write it with every sample and draw it; exit status 1 if a check failed."""
    run = server_soak(rounds, clients, share, seed)
    found = checks(run, clients, share)
    print(as_table(found))
    print(f"registration of {clients:,} clients: {run.joining:.1f} s of CPU")
    settings = {"rounds": rounds, "clients": clients, "share": share, "seed": seed, "machine": machine()}
    content = {**settings, "checks": [asdict(one) for one in found], **asdict(run)}
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(content) + "\n", encoding="utf-8")
    draw(run, FIGURE if to == RESULT else to.with_suffix(".svg"))
    raise typer.Exit(0 if all(one.passed for one in found) else 1)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    typer.run(main)
