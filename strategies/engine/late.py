"""Late replies count: a round goes on after some of its replies, and the others belong to later rounds.

This is buffered asynchronous aggregation (FedBuff, Nguyen et al. 2022, arXiv 2106.06639): so many clients are at work
at any time, and the server moves its anchor after every m replies. A movement that was made from the start of tau
rounds ago counts for s(tau) = (1 + tau)^-1/2 of itself, in product space:

    dW_i <- dW_i^start + s(tau) (dW_i - dW_i^start).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hyperlora.messages.train import TrainRequest
from strategies.engine.records import RoundRecord
from strategies.engine.screening import scaled_end
from strategies.federation.transport import Exchange
from strategies.methods.base.server import ClientUpdate


def share_of(delay: int) -> float:
    """Return s(tau), what counts of a movement that was started ``delay`` rounds ago."""
    return float((1 + delay) ** -0.5)


class LateReplies:
    """The requests of earlier rounds that clients are still at work on.

    Args:
        enough: replies after which a round goes on; 0 waits for all, so that there are no late ones.
    """

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self._working: Exchange[TrainRequest] = Exchange()

    @property
    def clients(self) -> set[str]:
        """The clients that are at work, so that they are not asked again."""
        return self._working.recipients

    @property
    def message_ids(self) -> list[str]:
        """The messages that they were sent."""
        return [metadata.message_id for metadata, _ in self._working.sent]

    def join(self, exchange: Exchange[TrainRequest]) -> Exchange[TrainRequest]:
        """Return a round's requests with those of earlier rounds, whose replies it takes as well."""
        exchange.carry(self._working)
        return exchange

    def keep(self, working: Exchange[TrainRequest] | None) -> None:
        """Remember who is at work when a round goes on."""
        self._working = working or Exchange()


def discounted(updates: Sequence[ClientUpdate], begun: Mapping[str, int], record: RoundRecord) -> list[ClientUpdate]:
    """Return the updates, those that were begun in an earlier round for less; the record has their delays afterwards.

    Args:
        updates: of the clients that answered.
        begun: client-id -> the round in which it was asked.
        record: of this round.
    """
    delays = [record.server_round - begun[one.card.client_id] for one in updates]
    record.late = {one.card.client_id: delay for one, delay in zip(updates, delays, strict=True) if delay}
    return [
        replace(update, end=scaled_end(update.start, update.end, share_of(delay))) if delay else update
        for update, delay in zip(updates, delays, strict=True)
    ]
