"""What a client of a run of noised sums answers: its movement, and what the head that it makes for itself is worth.

Answers are tensors without noise; they are shortened and get noise on the way out (:mod:`client_app.sum_steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from client_app.sums import Answer, SummedClient, figures_of
from hyperlora.messages.movements import MOVEMENTS
from hyperlora.messages.noised_questions import LOSS
from hyperlora.messages.questions import Question
from models.adapters.adapter import Adapter

MOST = {"accuracy": 1.0, "loss": LOSS, "validation": LOSS, "calibration": 1.0}
"""Bounds of the scores of a client."""


@dataclass(frozen=True)
class NoisedClient(SummedClient):
    """One client while it answers a question of a run with ``privacy.epsilon``."""

    def answer(self, question: Question) -> Answer:
        """Return the client's own part of a sum; raises ProtocolError where the question is not a whole one."""
        return _ANSWERS[question.kind](self, question)

    def movement(self, question: Question) -> Answer:
        """Tell how training changed the head and a factor: every client counts as one."""
        return self._moved(question)

    def noised_scores(self, question: Question) -> Answer:
        """Tell what the client's own start is worth on its test share."""
        figures = figures_of(self.served(question))
        return {name: one.clamp(0.0, MOST[name]) for name, one in figures.items()}

    def own_start(self, question: Question) -> Adapter:
        """Return the anchor with the head that the client makes for itself, before its class prior."""
        anchor = self._anchor(question)
        return self._fitted(anchor, self._features(anchor, "train"))


_ANSWERS: Mapping[str, Callable[[NoisedClient, Question], Answer]] = {
    **dict.fromkeys(MOVEMENTS.values(), NoisedClient.movement),
    "noised scores": NoisedClient.noised_scores,
}
