"""Budgets of use, tried on what a run ends with: nothing is trained again for them but what a client does at use.

Seen clients adapt their last start at each rate and are scored by their validation shares before and after each number
of steps, with the code and what they keep (:class:`client_app.tasks.Keeper`) as in the run's own evaluation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from benchmarks.trials import AdaptingGrid
from client_app.runtime import ClientRuntime, open_runtime
from hyperlora.config.schema import RunConfig
from hyperlora.messages.batch import EvaluateBatch, bundled, unbundled
from hyperlora.messages.evaluate import START_TRACK

App = Callable[[Message, Context], Message]
RATE = "train.adapt-learning-rate"
START, SCORES = "0 config", "0 metrics"
"""Records of the first part of an ``evaluate`` message, which is about the start, and of its reply."""


@dataclass
class AdaptingApp:
    """A ClientApp that, asked to evaluate in the last round, also tries every budget of the grid.

    Attributes:
        app: the app that answers.
        config: of the run.
        grid: the budgets.
        losses: (rate, steps) -> validation losses of the seen clients that try; filled by the run.
    """

    app: App
    config: RunConfig
    grid: AdaptingGrid
    losses: dict[tuple[float, int], list[float]] = field(default_factory=dict)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the app does; what is tried changes neither the reply nor what the client keeps."""
        reply = self.app(message, context)
        if message.metadata.message_type == EvaluateBatch.TYPE and not reply.has_error():
            asked = message.content.config_records[START]
            last = asked["server_round"] == self.config.federation.rounds
            if last and asked["track"] == START_TRACK and str(asked["client_id"]) in self._trying:
                self._try(message, context)
        return reply

    @functools.cached_property
    def _trying(self) -> frozenset[str]:
        runtime = open_runtime(self.config)
        return self.grid.drawn(seen_clients(runtime), self.config.seed)

    def _try(self, message: Message, context: Context) -> None:
        """Ask for the start alone, without the adapters that a client scores beside it, on validation samples."""
        alone = copy(message)
        start = RecordDict(dict(unbundled(message.content)[0]))
        asked = {**start.config_records["config"], "steps": list(self.grid.scored), "validation_only": True}
        start["config"] = ConfigRecord(asked)
        alone.content = RecordDict({**bundled([start]), "config": message.content["config"]})
        for rate in self.grid.rates:
            other = copy(context)
            other.run_config = {**context.run_config, RATE: rate}
            reply = self.app(alone, other)
            self.note(rate, reply.content.metric_records[SCORES]["validation_loss"])

    def note(self, rate: float, losses: Any) -> None:
        """Take over the validation losses of one client after each number of steps."""
        for steps, loss in zip(self.grid.scored, losses, strict=True):
            self.losses.setdefault((rate, steps), []).append(float(loss))


def seen_clients(runtime: ClientRuntime) -> list[str]:
    """Return the ids of the clients that train."""
    return [name for name in runtime.federation.client_ids if runtime.client(name).trains]


def mean_losses(losses: Mapping[tuple[float, int], list[float]]) -> list[dict[str, float]]:
    """Return what a result keeps: the mean validation loss of those that try, for every budget and before any."""
    return [{"rate": rate, "steps": steps, "loss": mean(found)} for (rate, steps), found in losses.items()]
