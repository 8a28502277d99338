"""A server that is killed, at random moments, in the middle of a write, after aggregation: resumed, nothing is lost."""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp

from benchmarks.local_grid import LocalGrid
from hyperlora.config.schema import RunConfig
from hyperlora.storage.chained_log import ChainedLog
from models.backbones.loading import families
from server_app.run import run
from strategies.engine.checkpoint import CheckpointStore
from tests.faults.cheap import cheap_client_app
from tests.faults.table import Row
from tests.faults.torn import TornWrites

LAZY = (
    "models.adapters.adapted_model",
    "models.backbones.loading",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "hyperlora.reporting.panels",
)
SETTINGS: dict[str, Any] = {
    "data.clients-per-domain": 1,
    "data.unseen-fraction": 0.0,
    "federation.clients-per-round": 3,
    "federation.rounds": 5,
    "federation.evaluate-every": 5,
    "hyperlora.probe-clients": 4,
    "train.local-steps": 1,
    "train.batch-size": 8,
    "generator.steps": 2,
    "run.checkpoint-every": 1,
    "run.sinks": "",
}
PATIENCE = 240.0


@dataclass(frozen=True)
class Kill:
    """How a run is ended: by which signal, and after so many seconds or in the middle of which write."""

    ending: int
    seconds: float = 0.0
    write: int = 0

    @property
    def name(self) -> str:
        """What it is called in a row."""
        return f"{signal.Signals(self.ending).name} {'in a write' if self.write else 'at a random moment'}"


def server_rows(kills: int, directory: Path, seed: int = 0) -> Iterator[Row]:
    """Make a run that is left alone, then ``kills`` that are killed, and one that is killed at the worst moment."""
    warm_up()
    began = time.monotonic()
    reference = outcome(left_alone(directory / "alone"))
    seconds, writes = time.monotonic() - began, int((directory / "alone.writes").read_text())
    yield between_aggregation_and_checkpoint(directory / "between", reference)
    chance, groups = random.Random(seed), dict[str, list[Kill]]()
    for index in range(max(kills, 4)):
        ending = signal.SIGKILL if index % 2 else signal.SIGTERM
        torn = index % 4 > 1
        kill = Kill(ending, 0.0 if torn else seconds * chance.uniform(0.02, 0.98), torn * chance.randint(1, writes))
        groups.setdefault(kill.name, []).append(kill)
    for name, group in groups.items():
        yield _killed_row(name, group, directory, reference)


def _killed_row(name: str, kills: list[Kill], directory: Path, reference: Any) -> Row:
    rounds, wrong = [], ""
    for kill in kills:
        place = directory / "killed"
        rounds.append(_end(place, kill))
        reason = resumed(place, reference)
        wrong = wrong or (reason and f"{kill}: {reason}")
        shutil.rmtree(place, ignore_errors=True)
        place.with_suffix(".log").unlink()
    expected = "each, resumed, ends with the files of the run that was left alone"
    seen = wrong or f"so it is with all; killed after {min(rounds)} to {max(rounds)} rounds"
    return Row(f"{name}: the server", expected, seen, not wrong, len(kills))


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
    same = not resumed(directory, reference)
    seen = (
        f"signal {os.WTERMSIG(status)}, {rounds} lines of metrics, {there[-1]}; resumed: {'same' if same else 'OTHER'}"
    )
    expected = "resumed after round 2, it ends with the files of the run that was left alone"
    passed = os.WTERMSIG(status) == signal.SIGKILL and there[-1] == "round-00002.pt" and same
    return Row("the server is killed between aggregation and checkpoint", expected, seen, passed)


def left_alone(directory: Path) -> Path:
    """Make the run that nothing happens to."""
    warm_up()
    writes = TornWrites()
    after = partial(writes.keep_count, directory.with_suffix(".writes"))
    require_success(serve(directory, before=writes.begin, after=after))
    return directory


def warm_up() -> None:
    """Import and make what a run needs on its way, so that a fork of this process need not."""
    for name in LAZY:
        importlib.import_module(name)
    families()
    client_app()


def serve(
    directory: Path,
    *,
    resume: bool = False,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> int:
    """Fork a process that makes a run in ``directory`` and return its id; it calls ``before`` and ``after``."""

    def action() -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Flower's processes end
        before()
        make_run(directory, resume=resume)
        after()

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


@functools.cache
def client_app() -> ClientApp:
    """Return the clients of these runs."""
    return cheap_client_app(RunConfig.parse(SETTINGS))


def make_run(directory: Path, *, resume: bool = False, grid: Callable[..., LocalGrid] = LocalGrid) -> Path:
    values = RunConfig.parse({**SETTINGS, "run.output-dir": str(directory), "run.resume": resume}).flat()
    return run(grid(client_app(), values, 2), values)


def _end(directory: Path, kill: Kill) -> int:
    """Start a run, end it as ``kill`` says and return how many rounds were in its metrics."""
    child = serve(directory, before=TornWrites(kill.write, kill.ending).begin)
    if not kill.write:
        time.sleep(kill.seconds)
        os.kill(child, kill.ending)
    os.waitpid(child, 0)
    return rounds_in(directory)


def resumed(directory: Path, reference: Any) -> str:
    """Go on with a run (or begin it, if it was killed before it had written its settings); return what is wrong."""
    begun, over = (directory / "config.json").exists(), (directory / "evaluation.json").exists()
    try:
        if not over:
            require_success(serve(directory, resume=begun))
        ChainedLog(directory / "audit.jsonl").read()
        same = outcome(directory) == reference
    except Exception as error:
        return f"{error}: {directory.with_suffix('.log').read_text()[-300:]}"
    said = directory.with_suffix(".log").read_text()
    return "OTHER FILES" if not same else "a traceback" if "Traceback" in said else ""


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
