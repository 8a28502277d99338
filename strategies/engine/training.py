"""The training of a round: its cohort is asked, and the replies become the updates that a method may see."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainReply, TrainRequest
from hyperlora.storage.tensor_store import TensorStore
from models.adapters.adapter import Adapter
from models.adapters.sensitivity import agreed
from strategies.engine.drift import described
from strategies.engine.history import History
from strategies.engine.late import LateReplies, discounted
from strategies.engine.records import RoundRecord
from strategies.engine.requests import RequestMaker
from strategies.federation.transport import Exchange, Sent, replies_as_they_come
from strategies.methods.base.server import ClientUpdate, TakesAdapters

Answered = Sequence[tuple[Sent[TrainRequest], TrainReply]]
ADAPTERS_IN_RAM = 2**28
log = logging.getLogger(__name__)


class Training:
    """Asks the cohort of each round, and reads what it replies; late replies of earlier rounds count with it.

    Args:
        requests: makes the messages; has the roster and the settings.

    Attributes:
        since: when work on the replies of the last round began, without the time that it waited for them.
    """

    def __init__(self, requests: RequestMaker) -> None:
        self._requests, self._settings, self._roster = requests, requests.settings, requests.registrar.roster
        self._late = LateReplies(self._settings.replies_per_round)
        self._exchange: Exchange[TrainRequest] = Exchange()
        self._take: Callable[[Adapter], None] | None = None
        self._sent_at = self.since = 0.0

    @property
    def at_work(self) -> set[str]:
        """The clients that still train for an earlier round."""
        return self._late.clients

    def messages(self, state: Any, cohort: Mapping[str, ClientCard], record: RoundRecord) -> list[Message]:
        """Return a message for each client of the cohort, with a start of its own."""
        began, method = time.perf_counter(), self._requests.method
        self._take = method.taker(state, len(cohort)) if isinstance(method, TakesAdapters) else None
        self._exchange = self._late.join(self._requests.training(state, cohort, record.server_round))
        self._sent_at = time.perf_counter()
        record.add_seconds("aggregating", self._sent_at - began)
        return self._exchange.messages()

    def replies(self, grid: Grid, messages: list[Message], timeout: float) -> Iterator[Message]:
        """Send the messages and return replies as they come, until the round has what it waits for."""
        exchange = self._exchange

        def has_enough() -> bool:
            return 0 < self._late.enough <= exchange.usable

        return replies_as_they_come(grid, messages, timeout, self._late.message_ids, has_enough)

    def updates(self, replies: Iterable[Message], record: RoundRecord, history: History) -> list[ClientUpdate]:
        """Check every reply and return what the method is to see; nothing where too few can be used.

        Who is left out, cut short or late is in the record afterwards, and what clients released in the history.
        """
        answered = self._answered(replies, record, history)
        updates = self._screened(answered, record, history)
        if updates:
            history.sensitivity = agreed([reply.sensitivity for _, reply in answered], history.sensitivity)
        begun = {sent.recipient: sent.request.server_round for sent, _ in answered}
        return discounted(updates, begun, record)

    def _answered(self, replies: Iterable[Message], record: RoundRecord, history: History) -> Answered:
        """Read the replies and return those that can be read; none where they are too few for a round."""
        take = self._take
        intake = Intake(lambda reply: take(reply.end) if take else None)
        answers = self._exchange.settle(replies, intake.decode, goes_on=self._late.enough > 0)
        self._late.keep(answers.working)
        self.since = time.perf_counter() - intake.seconds
        record.add_seconds("waiting", self.since - self._sent_at)
        self._roster.note(answers.asked, answers.heard)
        record.note_answers("train", answers)
        for name in [sent.recipient for sent, reply in answers.answered if reply.signature is not None]:
            history.note_signature(name)  # what was sent is spent, whatever becomes of the reply
        return answers.answered if self._enough(len(answers.answered), record) else []

    def _screened(self, answered: Answered, record: RoundRecord, history: History) -> list[ClientUpdate]:
        """Return the updates that the method is to see; who is left out or cut short is noted with the reason."""
        updates = [_update(self._roster.cards, *one) for one in answered]
        trains = next((sent.request.start.plan.trains for sent, _ in answered), "")
        claims = [card.num_examples for card in self._roster.cards.values()]
        screened = self._settings.screen.apply(updates, history.lengths_of(trains), claims)
        history.note_movements(screened.lengths, trains)
        record.note_failures("train", screened.left_out)
        record.clipped = screened.clipped
        for name, share in screened.clipped.items():
            log.warning("round %d: client '%s' moved too far, %.3g of it is kept", record.server_round, name, share)
        fewer = bool(screened.left_out) and not self._enough(len(screened.updates), record)
        return [] if fewer else screened.updates

    def _enough(self, usable: int, record: RoundRecord) -> bool:
        """Tell whether a round counts; where it does not, the log says so, and the record where there were replies."""
        wanted = self._settings.min_replies
        if usable >= wanted and usable:
            return True
        found = f"{usable} of {len(record.cohort)} clients sent a reply that can be used"
        if usable:
            record.failures["round"] = f"{found}, federation.min-replies is {wanted}: the round changes nothing"
        log.warning("round %d changes nothing: %s", record.server_round, found)
        return False


def _update(cards: Mapping[str, ClientCard], sent: Sent[TrainRequest], reply: TrainReply) -> ClientUpdate:
    card, start = described(cards[sent.recipient], reply), sent.request.start
    core_start = start.plan.core if reply.core else {}
    return ClientUpdate(
        card, start.adapter, reply.end, reply.metrics, reply.gradient, reply.core, core_start=core_start
    )


class Intake:
    """Decodes train replies; of a round's adapters ``ADAPTERS_IN_RAM`` bytes stay in RAM, the others go to disk.

    Args:
        take: is given every reply once it is decoded.

    Attributes:
        seconds: spent on decoding.
    """

    def __init__(self, take: Callable[[TrainReply], None]) -> None:
        self._store, self._take, self.seconds = TensorStore(ram_limit=ADAPTERS_IN_RAM), take, 0.0

    def decode(self, content: RecordDict, request: TrainRequest) -> TrainReply:
        """Return the reply to ``request``; raises ProtocolError as :meth:`TrainReply.decode`."""
        began = time.perf_counter()
        try:
            reply = TrainReply.decode(content, request)
            kept = replace(reply, end=Adapter.from_tensors(self._store.put(reply.end.tensors()).tensors()))
            self._take(kept)
            return kept
        finally:
            self.seconds += time.perf_counter() - began
