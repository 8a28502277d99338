"""What a round sends to whom: every client gets messages of its own with an adapter of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import LocalPlan, as_received
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainRequest
from models.adapters.adapter import Adapter
from strategies.engine.settings import RoundSettings
from strategies.engine.transport import Exchange
from strategies.federation.roster import Roster
from strategies.methods.base import Method


@dataclass(frozen=True)
class Packer:
    """Makes the requests of a round out of the method's state; changes nothing.

    Attributes:
        method: the algorithm.
        roster: who can be reached, and where.
        settings: budget, deadline and number format of the messages.
    """

    method: Method
    roster: Roster
    settings: RoundSettings

    def served(self, state: Any, cards: Mapping[str, ClientCard]) -> dict[str, tuple[Adapter, LocalPlan]]:
        """Return by client-id its start, cut to the client's own rank where that is lower, and its plan."""
        starts = self.method.starts(state, list(cards.values()))
        return {
            name: (
                start.truncated(card.rank) if 0 < card.rank < start.rank else start,
                self.method.plan(state, card),
            )
            for (name, card), start in zip(cards.items(), starts, strict=True)
        }

    def training(self, state: Any, cohort: Mapping[str, ClientCard], server_round: int) -> Exchange[TrainRequest]:
        """Ask every client of the cohort to train the start that the method makes for it."""
        exchange: Exchange[TrainRequest] = Exchange()
        wire, steps, wants = self.settings.wire, self.settings.local_steps, self.method.wants
        for name, (start, plan) in self.served(state, cohort).items():
            received, digest = as_received(start, plan, wire), cohort[name].signature.digest()
            request = TrainRequest(name, server_round, steps, received, wants, digest, plan, wire)
            self._add(exchange, request)
        return exchange

    def rehearsal(self, state: Any, server_round: int) -> Exchange[EvaluateRequest]:
        """Ask for the scores that the method wants to know before an evaluation."""
        exchange: Exchange[EvaluateRequest] = Exchange()
        cards = [card for card in self.roster.reachable().values() if card.trains]
        for name, adapters in self.method.rehearsals(state, cards, server_round).items():
            for track, adapter in adapters.items():
                request = EvaluateRequest(name, server_round, [0], adapter, track, wire=self.settings.wire)
                self._add(exchange, request)
        return exchange

    def evaluation(self, state: Any, server_round: int, *, last: bool) -> Exchange[EvaluateRequest]:
        """Ask every reachable client what its start is worth, and in the last round what the alternatives are."""
        exchange: Exchange[EvaluateRequest] = Exchange()
        cards = self.roster.reachable()
        for name, (start, plan) in self.served(state, cards).items():
            steps, wire = self.settings.evaluate_steps, self.settings.wire
            self._add(exchange, EvaluateRequest(name, server_round, steps, start, plan=plan, wire=wire))
            for request in self._alternatives(state, cards[name], server_round) if last else ():
                self._add(exchange, request)
        return exchange

    def _alternatives(self, state: Any, card: ClientCard, server_round: int) -> Iterator[EvaluateRequest]:
        for track, adapter in self.method.alternatives(state, card).items():
            yield EvaluateRequest(card.client_id, server_round, [0], adapter, track, wire=self.settings.wire)

    def _add(self, exchange: Exchange[Any], request: TrainRequest | EvaluateRequest) -> None:
        exchange.add(
            request,
            message_type=request.TYPE,
            node_id=self.roster.nodes[request.client_id],
            ttl=self.settings.round_timeout,
            server_round=request.server_round,
            backbone=self.roster.shipment.fingerprint if self.roster.shipment else "",
        )
