"""What clients are asked before they are served: to describe their classes, and to score candidates.

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
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics
from strategies.engine.records import RoundRecord
from strategies.engine.requests import RequestMaker
from strategies.federation.transport import ask_in_turn
from strategies.methods.base.server import AsksStatistics, ProbesStarts


@dataclass(frozen=True)
class Preparation:
    """The exchanges of a round before its evaluation, or before round 1.

    Attributes:
        requests: makes the messages.
        cards: of the clients that can be asked.
        grid: sends them.
        record: of the round; has their bytes, seconds and failures afterwards.
    """

    requests: RequestMaker
    cards: Mapping[str, ClientCard]
    grid: Grid
    record: RoundRecord

    def with_statistics(self, state: Any, method: AsksStatistics) -> Any:
        """Return the state that knows what the classes of all clients that answer look like."""
        anchor, rank = self.requests.method.anchor(state), method.statistics_rank(state)
        if rank is None or anchor is None:
            return state
        return method.with_statistics(state, self.statistics(anchor, rank))

    def statistics(self, anchor: Adapter, rank: int) -> dict[str, ClassStatistics]:
        """Return by client-id what classes look like in the features of ``anchor``, the scatter of rank ``rank``."""
        began = time.perf_counter()
        exchanges = self.requests.statistics(anchor, rank, self.cards, self.record.server_round)
        answers = ask_in_turn(exchanges, self.grid, self.requests.settings.round_timeout, self._checked)
        self.record.note_answers("statistics", answers)
        self.record.add_seconds("statistics", time.perf_counter() - began)
        return {sent.recipient: reply.statistics for sent, reply in answers.answered}

    def with_probe_losses(self, state: Any, method: ProbesStarts) -> Any:
        """Return the state that knows how the candidates did."""
        training = [card for card in self.cards.values() if card.trains]
        starts = method.probe_starts(state, training, self.record.server_round)
        return method.apply_probe_losses(state, self.losses(starts)) if starts else state

    def losses(self, starts: Mapping[str, Mapping[str, Adapter]]) -> dict[str, dict[str, float]]:
        """Return client-id -> candidate -> validation loss of the clients that answer, of what each is to try."""
        began, exchange = time.perf_counter(), self.requests.probing(starts, self.cards, self.record.server_round)
        answers = exchange.ask(self.grid, self.requests.settings.round_timeout, EvaluateReplies.decode)
        self.record.note_answers("probe", answers)
        self.record.add_seconds("probing", time.perf_counter() - began)
        return {
            sent.recipient: {
                request.track: reply.validation_loss[0]
                for request, reply in zip(sent.request.requests, batch.replies, strict=True)
            }
            for sent, batch in answers.answered
        }

    def _checked(self, content: RecordDict, request: StatisticsRequest) -> StatisticsReply:
        reply = StatisticsReply.decode(content, request)
        counted = int(reply.statistics.counts.sum())
        told = self.requests.registrar.roster.cards[request.client_id].num_examples
        if counted > told:
            raise ProtocolError(f"its class statistics count {counted} samples, and it said it has {told}")
        return reply
