"""A server that is killed, at random moments and between aggregation and checkpoint, and resumed: nothing is lost."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.local_grid import LocalGrid
from client_app.app import app
from hyperlora.config.schema import RunConfig
from models.backbones.loading import families
from server_app.run import run
from strategies.engine.checkpoint import CheckpointStore
from tests.faults.table import Row

LAZY = ("models.adapters.adapted_model", "models.backbones.loading", "sklearn.datasets", "hyperlora.data.digits",
        "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "hyperlora.reporting.panels")  # fmt: skip
SETTINGS: dict[str, Any] = {
    "data.clients-per-domain": 1,
    "data.unseen-fraction": 0.0,
    "federation.clients-per-round": 3,
    "federation.rounds": 10,
    "federation.evaluate-every": 5,
    "hyperlora.probe-clients": 4,
    "train.local-steps": 1,
    "train.batch-size": 8,
    "generator.steps": 2,
    "run.checkpoint-every": 1,
    "run.sinks": "",
}
PATIENCE = 240.0


def server_rows(kills: int, directory: Path, seed: int = 0) -> Iterator[Row]:
    """Make a run that is left alone, then ``kills`` that are killed, and one that is killed at the worst moment."""
    began = time.monotonic()
    reference = outcome(left_alone(directory / "alone"))
    seconds = time.monotonic() - began
    yield between_aggregation_and_checkpoint(directory / "between", reference)
    chance, places, wrong = random.Random(seed), [], 0
    for index in range(kills):
        place = directory / f"killed-{index}"
        places.append(killed_after(place, seconds * chance.uniform(0.02, 0.98)))
        wrong += not resumed(place, reference)
    rounds = f"the kills came after {', '.join(map(str, sorted(places)))} rounds"
    yield Row(
        "kill -9 of the server at random moments",
        "each, resumed, ends with the files of the run that was left alone",
        f"{kills - wrong} of {kills}; {rounds}",
        not wrong,
        kills,
    )


def between_aggregation_and_checkpoint(directory: Path, reference: Any) -> Row:
    """Kill the server after round 3 is aggregated and written to the metrics, before its checkpoint."""

    def before() -> None:
        save = CheckpointStore.save

        def kill_at_three(self: CheckpointStore, checkpoint: Any, classes: Any) -> Path:
            if checkpoint.server_round == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return save(self, checkpoint, classes)

        CheckpointStore.save = kill_at_three  # type: ignore[method-assign]  # in the child alone

    status = os.waitpid(serve(directory, before=before), 0)[1]
    rounds, there = rounds_in(directory), sorted(path.name for path in (directory / "checkpoints").iterdir())
    same = resumed(directory, reference)
    seen = (
        f"signal {os.WTERMSIG(status)}, {rounds} lines of metrics, {there[-1]}; resumed: {'same' if same else 'OTHER'}"
    )
    expected = "resumed after round 2, it ends with the files of the run that was left alone"
    passed = os.WTERMSIG(status) == signal.SIGKILL and there[-1] == "round-00002.pt" and same
    return Row("the server is killed between aggregation and checkpoint", expected, seen, passed)


def left_alone(directory: Path) -> Path:
    """Make the run that nothing happens to."""
    warm_up()
    require_success(serve(directory))
    return directory


def warm_up() -> None:
    """Import what a run imports on its way, so that a fork of this process need not; train nothing."""
    for name in LAZY:
        importlib.import_module(name)
    families()


def serve(directory: Path, *, resume: bool = False, before: Callable[[], None] = lambda: None) -> int:
    """Fork a process that makes a run in ``directory`` and return its id; ``before`` is called in it first."""

    def action() -> None:
        before()
        make_run(directory, resume=resume)

    return forked(action, directory.with_suffix(".log"))


def forked(action: Callable[[], None], log: Path) -> int:
    """Fork a process that does ``action``, writes to ``log`` and ends with status 0, or 1 where it raised."""
    log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        action()
        status = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


def make_run(directory: Path, *, resume: bool = False, grid: Callable[..., LocalGrid] = LocalGrid) -> Path:
    values = RunConfig.parse({**SETTINGS, "run.output-dir": str(directory), "run.resume": resume}).flat()
    return run(grid(app, values, 2), values)


def killed_after(directory: Path, seconds: float) -> int:
    """Start a run, kill -9 it after ``seconds`` and return how many rounds were in its metrics."""
    child = serve(directory)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return rounds_in(directory)


def resumed(directory: Path, reference: Any) -> bool:
    """Go on with a run (or begin it, if it was killed before it had written its settings) and compare its results."""
    begun, over = (directory / "config.json").exists(), (directory / "evaluation.json").exists()
    if not over:
        require_success(serve(directory, resume=begun))
    return bool(outcome(directory) == reference)


def require_success(child: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"a run did not end within {PATIENCE:.0f} s")
        time.sleep(0.02)
    if done[1]:
        raise RuntimeError(f"a run ended with status {done[1]}; its log lies beside its directory")


def outcome(directory: Path) -> tuple[list[dict[str, Any]], bytes, dict[str, bytes]]:
    """Return what two equal runs have in common: metrics without times, evaluation, adapters."""
    adapters = sorted((directory / "adapters").glob("*/adapter_model.safetensors"))
    return (
        metrics_of(directory),
        (directory / "evaluation.json").read_bytes(),
        {path.parent.name: path.read_bytes() for path in adapters},
    )


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def rounds_in(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
