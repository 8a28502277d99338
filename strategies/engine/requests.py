"""What a round sends to whom: every client gets messages of its own with an adapter of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ArrayRecord

from hyperlora.messages.batch import EvaluateBatch
from hyperlora.messages.codec import encode_packed
from hyperlora.messages.evaluate import START_TRACK, EvaluateRequest
from hyperlora.messages.plan import PLAIN_PLAN, LocalPlan, Start
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.train import TrainRequest
from models.adapters.adapter import Adapter
from models.adapters.rank_budget import NO_WORTH, Worth
from strategies.engine.settings import RoundSettings
from strategies.federation.registrar import Registrar
from strategies.federation.transport import Exchange
from strategies.methods.base.server import Method, OffersAlternatives, served_starts

AT_A_TIME = 256
"""Clients whose messages before and in an evaluation are in memory at the same time."""


@dataclass(frozen=True)
class RequestMaker:
    """Makes the requests of a round out of the method's state; changes nothing.

    Attributes:
        method: the algorithm.
        registrar: who can be reached, and where.
        settings: budget, deadline and number format of the messages.
        worth: returns what components of modules are worth, by which budgets of bytes are shared out.
    """

    method: Method
    registrar: Registrar
    settings: RoundSettings
    worth: Callable[[], Worth] = lambda: NO_WORTH

    def starts(self, state: Any, cards: Mapping[str, ClientCard]) -> dict[str, Start]:
        """Return by client-id the start of each client for a round, as it decodes it, with its plan."""
        return self._fitted(state, cards, self.method.starts(state, list(cards.values())))

    def served(self, state: Any, cards: Mapping[str, ClientCard]) -> dict[str, Start]:
        """Return by client-id what each client is sent to use, as it decodes it, with its plan."""
        return self._fitted(state, cards, served_starts(self.method, state, list(cards.values())))

    def _fitted(self, state: Any, cards: Mapping[str, ClientCard], adapters: Sequence[Adapter]) -> dict[str, Start]:
        """Return the starts; clients that are served the same adapter alike have the same object."""
        fitted: dict[Hashable, tuple[Adapter, Start]] = {}  # the adapter stays, so that no other one gets its id
        starts = {}
        for (name, card), adapter in zip(cards.items(), adapters, strict=True):
            plan = self.method.plan(state, card)
            alike = (id(adapter), card.rank, card.most_bytes, tuple(plan.down))
            if alike not in fitted:
                fitted[alike] = adapter, self._start(adapter, card, plan)
            starts[name] = replace(fitted[alike][1], plan=plan)
        return starts

    def _start(self, adapter: Adapter, card: ClientCard, plan: LocalPlan = PLAIN_PLAN) -> Start:
        start = Start(adapter, plan, self.settings.wire)
        return start.fitted(card.rank, card.most_bytes, self.worth())

    def training(self, state: Any, cohort: Mapping[str, ClientCard], server_round: int) -> Exchange[TrainRequest]:
        """Ask every client of the cohort, if there is one, to train the start that the method makes for it."""
        exchange: Exchange[TrainRequest] = Exchange()
        if not cohort:
            return exchange
        for name, start in self.starts(state, cohort).items():
            digest = cohort[name].signature.digest()
            steps, tells = self.settings.local_steps, self.settings.tells_sensitivity
            self._add(exchange, TrainRequest(name, server_round, steps, start, digest, tells))
        return exchange

    def scored(self, server_round: int, *, last: bool) -> dict[str, ClientCard]:
        """Return the clients that an evaluation asks: all that can be reached, or as many of them as are set."""
        cards, most = self.registrar.roster.reachable(), self.settings.evaluate_clients
        if last or not 0 < most < len(cards):
            return cards
        chosen = random.Random(f"evaluation:{self.settings.seed}:{server_round}").sample(sorted(cards), most)
        return {name: cards[name] for name in cards if name in set(chosen)}

    def probing(
        self, starts: Mapping[str, Mapping[str, Adapter]], cards: Mapping[str, ClientCard], server_round: int
    ) -> Exchange[EvaluateBatch]:
        """Ask clients for their validation losses with adapters to try, by client-id and by name."""
        exchange: Exchange[EvaluateBatch] = Exchange()
        for name, adapters in starts.items():
            tracks = self._tracks(cards[name], adapters, server_round)
            self._add(exchange, EvaluateBatch([replace(one, validation_only=True) for one in tracks]))
        return exchange

    def statistics(
        self, anchor: Adapter, rank: int, cards: Mapping[str, ClientCard], server_round: int
    ) -> Iterator[Exchange[StatisticsRequest]]:
        """Ask clients for their class statistics in the feature space of ``anchor``, the scatter of rank ``rank``."""
        for portion in portions(cards):
            exchange: Exchange[StatisticsRequest] = Exchange()
            for name, card in portion.items():
                self._add(exchange, StatisticsRequest(name, server_round, rank, self._start(anchor, card)))
            yield exchange

    def evaluation(
        self, state: Any, cards: Mapping[str, ClientCard], server_round: int, *, last: bool
    ) -> Exchange[EvaluateBatch]:
        """Ask clients what their starts are worth, and in the last round what the alternatives are."""
        exchange: Exchange[EvaluateBatch] = Exchange()
        method = self.method
        for name, start in self.served(state, cards).items():
            steps = self.settings.evaluate_steps
            asked = [EvaluateRequest(name, server_round, steps, start, START_TRACK)]
            if last and isinstance(method, OffersAlternatives):
                asked += self._tracks(cards[name], method.alternatives(state, cards[name]), server_round)
            self._add(exchange, EvaluateBatch(asked))
        return exchange

    def anchor_arrays(self, state: Any) -> ArrayRecord | None:
        """Return the method's anchor as Flower's loop keeps it; None where the method has none."""
        anchor = self.method.anchor(state)
        return None if anchor is None else encode_packed(anchor.tensors())

    def _tracks(
        self, card: ClientCard, adapters: Mapping[str, Adapter], server_round: int
    ) -> Iterator[EvaluateRequest]:
        """Yield requests to score other adapters than the start, as received only."""
        for track, adapter in adapters.items():
            start = self._start(adapter, card)
            yield EvaluateRequest(card.client_id, server_round, [0], start, track)

    def _add(self, exchange: Exchange[Any], request: TrainRequest | EvaluateBatch | StatisticsRequest) -> None:
        exchange.add(
            request,
            node_id=self.registrar.roster.nodes[request.client_id],
            recipient=request.client_id,
            ttl=self.settings.round_timeout,
            server_round=request.server_round,
            backbone=self.registrar.shipped_fingerprint,
        )


def portions(cards: Mapping[str, ClientCard]) -> Iterator[dict[str, ClientCard]]:
    """Yield the clients ``AT_A_TIME`` at a time."""
    names = list(cards)
    for start in range(0, len(names), AT_A_TIME):
        yield {name: cards[name] for name in names[start : start + AT_A_TIME]}
