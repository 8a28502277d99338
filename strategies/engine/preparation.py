"""What clients are asked before an evaluation: to describe their classes, and to score the method's candidates.

A client that does not answer costs its own contribution: it is served without its own statistics, and has no say in
which candidate wins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from hyperlora.messages.batch import EvaluateReplies
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.statistics import StatisticsReply, StatisticsRequest
from strategies.engine.records import RoundRecord
from strategies.engine.requests import RequestMaker
from strategies.federation.transport import ask_in_turn
from strategies.methods.base.server import AsksStatistics, ProbesStarts


@dataclass(frozen=True)
class Preparation:
    """The exchanges of one round before its evaluation.

    Attributes:
        requests: makes the messages.
        cards: of the clients that the evaluation asks.
        grid: sends them.
        record: of the round; has their bytes, seconds and failures afterwards.
    """

    requests: RequestMaker
    cards: Mapping[str, ClientCard]
    grid: Grid
    record: RoundRecord

    def with_statistics(self, state: Any, method: AsksStatistics) -> Any:
        """Return the state that knows what the classes of all clients that answer look like."""
        began = time.perf_counter()
        exchanges = self.requests.statistics(state, self.cards, self.record.server_round)
        answers = ask_in_turn(exchanges, self.grid, self.requests.settings.round_timeout, self._checked)
        if not answers.asked:
            return state
        self.record.note_answers("statistics", answers)
        statistics = {sent.recipient: reply.statistics for sent, reply in answers.answered}
        state = method.with_statistics(state, statistics)
        self.record.add_seconds("statistics", time.perf_counter() - began)
        return state

    def with_probe_losses(self, state: Any, method: ProbesStarts) -> Any:
        """Return the state that knows how the candidates did."""
        began, exchange = time.perf_counter(), self.requests.probing(state, self.cards, self.record.server_round)
        if not exchange.sent:
            return state
        answers = exchange.ask(self.grid, self.requests.settings.round_timeout, EvaluateReplies.decode)
        self.record.note_answers("probe", answers)
        losses = {
            sent.recipient: {
                request.track: reply.validation_loss[0]
                for request, reply in zip(sent.request.requests, batch.replies, strict=True)
            }
            for sent, batch in answers.answered
        }
        state = method.apply_probe_losses(state, losses)
        self.record.add_seconds("probing", time.perf_counter() - began)
        return state

    def _checked(self, content: RecordDict, request: StatisticsRequest) -> StatisticsReply:
        reply = StatisticsReply.decode(content, request)
        counted = int(reply.statistics.counts.sum())
        told = self.requests.registrar.roster.cards[request.client_id].num_examples
        if counted > told:
            raise ProtocolError(f"its class statistics count {counted} samples, and it said it has {told}")
        return reply
