"""An evaluation: clients score what is made for them on data of their own, and the figures go into a round's record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp import Grid

from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.signature import ClientCard
from strategies.engine.records import ClientScore, RoundRecord, client_score, evaluation_figures
from strategies.engine.requests import RequestMaker, portions
from strategies.federation.transport import Answers, Exchange, ask_in_turn

NOT_ASKED = "not asked: its node did not answer lately"


class Evaluation:
    """One evaluation of a run.

    Args:
        requests: makes the messages.
        record: of the round; has bytes, seconds, failures and figures afterwards.
        last: whether the alternatives of the method are scored as well.
        everyone: whether all clients are asked, whatever the settings say.

    Attributes:
        cards: of the clients that are asked.
    """

    def __init__(self, requests: RequestMaker, record: RoundRecord, *, last: bool, everyone: bool) -> None:
        self._requests, self._record, self._last = requests, record, last
        self.cards = requests.scored(record.server_round, last=everyone)

    def exchange(self, state: Any, cards: Mapping[str, ClientCard]) -> Exchange[EvaluateBatch]:
        """Return the messages to some of the clients."""
        began = time.perf_counter()
        exchange = self._requests.evaluation(state, cards, self._record.server_round, last=self._last)
        self._record.add_seconds("aggregating", time.perf_counter() - began)
        return exchange

    def ask(self, state: Any, grid: Grid, timeout: float) -> Answers[EvaluateBatch, EvaluateReplies]:
        """Ask all clients, so many at a time as memory holds; ``timeout`` seconds each time."""
        seconds = self._record.seconds
        began, made = time.perf_counter(), seconds.get("aggregating", 0.0)
        exchanges: Iterator[Exchange[EvaluateBatch]] = (self.exchange(state, one) for one in portions(self.cards))
        answers = ask_in_turn(exchanges, grid, timeout, EvaluateReplies.decode)
        making = seconds.get("aggregating", 0.0) - made
        self._record.add_seconds("evaluating", time.perf_counter() - began - making)
        return answers

    def scores(self, answers: Answers[EvaluateBatch, EvaluateReplies]) -> list[ClientScore]:
        """Return the scores of the clients that have test samples, and note who did not answer."""
        roster, record = self._requests.registrar.roster, self._record
        resting = dict.fromkeys(sorted(roster.resting()), NOT_ASKED)
        roster.note(answers.asked, answers.heard)
        record.note_failures("evaluate", resting)
        record.note_answers("evaluate", answers)
        scores = [
            client_score(roster.cards[sent.recipient], request, reply)
            for sent, batch in answers.answered
            for request, reply in zip(sent.request.requests, batch.replies, strict=True)
            if reply.num_test
        ]
        record.evaluation = evaluation_figures(scores)
        return scores


def means_of(evaluation: Mapping[str, Any]) -> MetricRecord | None:
    """Return what Flower's result shows of an evaluation: the mean accuracies; None where nobody was scored."""
    means = {
        f"{group}_{name}": figures[name]["mean"]
        for group, figures in evaluation.items()
        for name in ("zero_step", "k_step")
        if group in ("seen", "unseen")
    }
    return MetricRecord(means) if means else None
