"""How far a run is: what is being waited for, counted on the messages, and the time left by the pace so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from hyperlora.progress import pace
from server_app.wrapped_grid import WrappedGrid
from strategies.engine.records import RoundRecord

QUIET, EVERY = 5.0, 20.0
"""Seconds after which a phase is spoken of for the first time, and between two lines of one phase."""
PHASES = {
    "query": "describing and embedding their samples",
    "train": "training",
    "evaluate": "evaluating",
}


def phase_of(message: Message) -> str:
    """Return what clients do while they work on a message, such as ``sum of moments, masked``."""
    kind, _, question = message.metadata.message_type.partition(".")
    config = message.content.get("config")
    if question == "sum" and isinstance(config, ConfigRecord):
        return f"sum of {str(config['name']).rpartition('.')[2]}, {config['step']!s}"
    return PHASES.get(kind, kind)


@dataclass
class Pace:
    """The time that the rounds and evaluations to come will take.

    Attributes:
        rounds: of the run.
        evaluate_every: rounds between two evaluations; the last round always has one.
        evaluation_share: what an evaluation takes in training rounds, until one was seen.
    """

    rounds: int
    evaluate_every: int
    evaluation_share: float
    _ended: float | None = None
    _training: list[float] = field(default_factory=list)
    _evaluating: list[float] = field(default_factory=list)

    def left_after(self, record: RoundRecord, now: float) -> float | None:
        """Note a round that ended at ``now`` and return the seconds left; None where there is no telling yet.

        The first round of a process also pays for its start and counts only for its evaluation.
        """
        evaluation = sum(record.seconds.get(phase, 0.0) for phase in ("evaluating", "probing"))
        if record.evaluation:
            self._evaluating.append(evaluation)
        if self._ended is not None:
            self._training.append(now - self._ended - evaluation)
        self._ended = now
        if not self._training:
            return None
        training = fmean(self._training)
        evaluating = fmean(self._evaluating) if self._evaluating else self.evaluation_share * training
        coming = range(record.server_round + 1, self.rounds + 1)
        evaluations = sum(number % self.evaluate_every == 0 or number == self.rounds for number in coming)
        return training * len(coming) + evaluating * evaluations


class ProgressGrid(WrappedGrid):
    """A grid that says, while it is waited for, how many of the messages sent together are answered.

    Args:
        grid: does the work.
        say: takes a line, such as ``training: 3 of 8 answered after 0:25, about 0:42 left``.
        now: a clock in seconds.
    """

    def __init__(self, grid: Grid, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(grid)
        self._say, self._now = say, now
        self._phase, self._total, self._done = "", 0, 0
        self._began = self._spoke = now()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, which begins a phase that is named by their type."""
        sent = list(messages)
        if sent:
            self._phase, self._total, self._done = phase_of(sent[0]), len(sent), 0
            self._began = self._spoke = self._now()
        return self._grid.push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, and say how far the phase is where it is time to."""
        replies = list(self._grid.pull_messages(message_ids))
        self._done += len(replies)
        now = self._now()
        due = self._began + QUIET if self._spoke == self._began else self._spoke + EVERY
        if self._done < self._total and now >= due:
            self._spoke = now
            self._say(self._line(now - self._began))
        return replies

    def _line(self, seconds: float) -> str:
        return f"{self._phase}: {self._done} of {self._total} answered {pace(self._done, self._total, seconds)}"
