"""What a client of a run of noised sums answers: its movement, and its classes in the space of the anchor's logits.

Answers are tensors without noise; they are shortened and get noise on the way out (:mod:`client_app.sum_steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client_app.sums import Answer, SummedClient
from hyperlora.messages.movements import MOVEMENTS
from hyperlora.messages.noised_questions import LOSS
from hyperlora.messages.questions import Question
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics
from models.sums.group_statistics import Spread
from models.sums.logit_space import LogitSpace, logit_contribution, logit_deviations


@dataclass(frozen=True)
class NoisedClient(SummedClient):
    """One client while it answers a question of a run with ``privacy.epsilon``."""

    def told(self, question: Question) -> Answer:
        """Return the client's own part of a sum; raises ProtocolError where the question is not a whole one."""
        return _ANSWERS[question.kind](self, question)

    def movement(self, question: Question) -> Answer:
        """Tell how training changed the head and a factor: every client counts as one."""
        return self._moved(question)

    def logit_classes(self, question: Question) -> Answer:
        """Tell what its classes look like in the space of the anchor's logits."""
        return logit_contribution(self._in_logits(self._anchor(question))[1])

    def logit_deviations(self, question: Question) -> Answer:
        """Tell how far its class means lie from the published ones."""
        return logit_deviations(question.logit_statistics, self._in_logits(self._anchor(question))[1])

    def noised_losses(self, question: Question) -> Answer:
        """Tell the validation losses with the anchor's head and with the client's own, cut off."""
        tried = {"anchor": self._anchor(question), "own": self._served(question, share=None)}
        losses = {name: self._scored(one, [0], only=True).validation_loss[0] for name, one in tried.items()}
        return {name: torch.tensor([one]).clamp(0.0, LOSS) for name, one in losses.items()}

    def noised_scores(self, question: Question) -> Answer:
        """Tell what the client's own start is worth on its test share."""
        served = self.own_start(question)
        self.runtime.keep_adapter(self.runtime.with_prior(self._name, served))
        reply = self._scored(served, list(self.runtime.config.evaluation_steps))
        told: Mapping[str, tuple[Sequence[float], float]] = {
            "accuracy": (reply.test_accuracy, 1.0),
            "loss": (reply.test_loss, LOSS),
            "validation": (reply.validation_loss, LOSS),
            "calibration": (reply.calibration_error, 1.0),
        }
        return {name: torch.tensor(list(values)).clamp(0.0, most) for name, (values, most) in told.items()}

    def _served(self, question: Question, share: float | None) -> Adapter:
        """Return what the client makes for itself of what is public; ``share`` of the head, None as it is set."""
        anchor = self._anchor(question)
        part = float(question.public["mixture"][0]) if share is None else share
        if part == 0.0:
            return anchor
        public = question.logit_statistics
        space, own = self._in_logits(anchor)
        inner = public.head(own, Spread(*map(float, question.public["between clients"])))
        mixed: Tensor = (1 - part) * anchor.head + part * space.head(inner)
        strength, frequencies = self.runtime.config.prior_strength, self.runtime.frequencies(self._name)
        mixed[:, -1] += strength * (public.log_frequencies(own) - frequencies.log())
        return Adapter(anchor.low_rank, mixed)

    def _in_logits(self, anchor: Adapter) -> tuple[LogitSpace, ClassStatistics]:
        """Return the space of an anchor's logits, and what the client's classes look like in it."""
        features, labels = self._features(anchor)
        space = LogitSpace.of(anchor.head)
        return space, space.statistics(features, labels)


_ANSWERS: Mapping[str, Callable[[NoisedClient, Question], Answer]] = {
    **dict.fromkeys(MOVEMENTS.values(), NoisedClient.movement),
    "logit classes": NoisedClient.logit_classes,
    "logit deviations": NoisedClient.logit_deviations,
    "noised losses": NoisedClient.noised_losses,
    "noised scores": NoisedClient.noised_scores,
}
