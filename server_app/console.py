"""What a person reads while a run goes on: one line per round, on the screen and in ``console.log``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hyperlora.clock import clock
from hyperlora.config.schema import RunConfig
from hyperlora.reporting.verdict import choice_sentence
from hyperlora.storage.files import StorageError, append_bytes
from models.adapters.adapter import NO_FORM
from server_app.progress import Pace
from strategies.engine.records import ClientScore, RoundRecord

log = logging.getLogger(__name__)
GROUPS = ("seen", "unseen")


class RunConsole:
    """Appends lines to a file that ``hyperlora run`` shows as they come, and prints them where ``echo`` says so."""

    def __init__(self, path: Path, *, pace: Pace, echo: bool) -> None:
        self._path, self._pace = path, pace
        self._screen = Console(highlight=False, quiet=not echo)
        self._began, self._counted = time.perf_counter(), "{} clients"
        self._served, self._noised, self._rival = "client", False, "fedit"

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, without those between a stop and the resume."""
        return time.perf_counter() - self._began

    def opening(self, config: RunConfig, directory: Path) -> None:
        """Say what is about to run."""
        self._say(
            f"{config.method} on {config.data.name} with {config.model.name}: {config.federation.rounds} rounds, "
            f"{config.federation.clients_per_round} clients per round, {config.train.local_steps} local steps of "
            f"{config.train.batch_size}, LoRA rank {config.lora.rank}, seed {config.seed}"
        )
        self._say(f"results go to {directory}")
        self._rival = "hyperlora" if config.method == "fedit" else "fedit"
        if config.privacy.mode == "sums":
            self._counted, self._served = "clusters of {} clients", "cluster"
            self._say(
                f"the server is told sums over at least {config.privacy.least_clients} clients, and figures of clusters"
            )
        self._noised = config.privacy.noised_sums
        if self._noised:
            self._counted = "groups of {} clients"
            self._say(
                f"the sums have noise: the whole run costs a client an epsilon of {config.privacy.epsilon:g} at delta "
                f"{config.privacy.delta:g}"
            )

    def switched_off(self, names: Sequence[str]) -> None:
        """Say which of the method's modules are off, if any."""
        if names:
            self._say(f"off: {', '.join(names)}")

    def going_on(self, last_round: int, elapsed: float) -> None:
        """Say after which round a resumed run goes on, 0 without a checkpoint; it took ``elapsed`` seconds so far."""
        self._began -= elapsed
        if last_round:
            self._say(f"going on after round {last_round}")
        else:
            self._say("there is no checkpoint: the run begins again at round 1")

    def round(self, record: RoundRecord) -> None:
        """Say what a round brought."""
        rounds = self._pace.rounds
        parts = [f"round {record.server_round:>{len(str(rounds))}}/{rounds}", _training(record)]
        parts += [_group(name, record.evaluation[name]) for name in GROUPS if name in record.evaluation]
        if record.failures:
            parts.append(f"{len(record.failures)} left out")
        if record.clipped:
            parts.append(f"{len(record.clipped)} cut short")
        if record.privacy:
            parts.append(f"epsilon {record.privacy['epsilon']:.3g}")
        parts.append(f"{sum(record.bytes.values()) / 2**20:.1f} MiB{self._time(record)}")
        self._say("  ".join(parts))

    def _time(self, record: RoundRecord) -> str:
        """Return the time left, the evaluations to come included, or after the last round the time in all."""
        left = self._pace.left_after(record, time.perf_counter())
        if record.server_round == self._pace.rounds:
            return f", {clock(record.seconds.get('elapsed', self.elapsed))} in all"
        return "" if left is None else f", {clock(left)} left"

    def progress(self, line: str) -> None:
        """Say how far a phase is that takes long."""
        self._say(f"  {line}")

    def closing(self, record: RoundRecord, scores: Sequence[ClientScore], directory: Path) -> None:
        """Say the result, what the validation shares choose, where it lies and how to go on."""
        for name in GROUPS:
            if name not in record.evaluation:
                continue
            figures = record.evaluation[name]
            self._say(
                f"accuracy of {figures['clients']} {self._counted.format(name)} on their own test data: "
                f"{_percent(figures['zero_step'])} with the adapter as received, "
                f"{_percent(figures['k_step'])} after local steps "
                f"(worst tenth {_percent(figures['k_step'], 'worst_tenth')})"
            )
            if alone := record.evaluation.get(f"{name} anchor"):
                self._say(
                    f"without what is generated for each of them, {name} clients would have "
                    f"{_percent(alone['zero_step'])} as received"
                )
        if noise := record.method.get("score_noise"):
            self._say(f"these accuracies have noise of a standard deviation of {100 * noise:.1f} points")
        for kind, reason in record.missing_sums.items():
            self._say(f"there was no sum of '{kind}' in the last round: {reason}")
        if chosen := choice_sentence([asdict(score) for score in scores]):
            self._say(chosen)
        self._say(f"figure {directory / 'accuracy.png'}, metrics {directory / 'metrics.jsonl'}")
        adapters = directory / "adapters"
        written = f"one adapter per {self._served} in {adapters}; load with peft.PeftModel.from_pretrained"
        self._say(written if adapters.is_dir() else NO_FORM)
        if not self._noised:  # its noise is planned for its rounds
            self._say(f"more rounds: hyperlora run --resume {directory} -c federation.rounds={2 * self._pace.rounds}")
        self._say(f"compare: hyperlora run --method {self._rival}; other settings: hyperlora run --help")

    def _say(self, line: str) -> None:
        self._screen.print(line, markup=False, soft_wrap=True)
        try:
            append_bytes(self._path, f"{line}\n".encode(), durable=False)
        except StorageError as error:
            log.warning("%s", error)


def _training(record: RoundRecord) -> str:
    if not record.training:
        return "no client answered"
    if "start_accuracy" not in record.training:
        return "validation not told"
    start, end = (_percent(record.training[name]) for name in ("start_accuracy", "end_accuracy"))
    return f"validation {start} -> {end}"


def _group(name: str, figures: dict[str, Any]) -> str:
    return f"{name} test {_percent(figures['zero_step'])} -> {_percent(figures['k_step'])}"


def _percent(figures: dict[str, float], name: str = "mean") -> str:
    return f"{100 * figures[name]:.1f} %"
