"""Clients whose data changed: their cards as of now, and by how much their signatures moved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainReply
from models.personalization.signature import Signature, drift
from strategies.engine.records import RoundRecord

log = logging.getLogger(__name__)


def described(card: ClientCard, reply: TrainReply) -> ClientCard:
    """Return a client's card as of its reply, which brings another signature where its data changed."""
    if reply.signature is None:
        return card
    return replace(card, signature=reply.signature, num_examples=reply.metrics.num_examples)


def take_over(record: RoundRecord, cards: dict[str, ClientCard], found: Iterable[ClientCard]) -> bool:
    """Put cards that differ from those of ``cards`` in their place and note the moves; tell whether there were any."""
    changed = [card for card in found if card is not cards[card.client_id]]
    known = [card.signature for card in cards.values()]
    for card in changed:
        before, cards[card.client_id] = cards[card.client_id].signature, card
        _note_move(record, card, before, known)
    return bool(changed)


def note_returned(record: RoundRecord, cards: Mapping[str, ClientCard], before: Mapping[str, Signature]) -> None:
    """Note by how much the signatures moved that clients came back with; ``before`` has those of the time before."""
    known = [card.signature for name, card in cards.items() if name not in before]
    for name, signature in before.items():
        _note_move(record, cards[name], signature, [*known, *before.values()])


def _note_move(record: RoundRecord, card: ClientCard, before: Signature, known: Sequence[Signature]) -> None:
    name = card.client_id
    record.drift[name] = drift(before, card.signature, known)
    log.warning("client '%s' has other data now: its signature moved by %.2f", name, record.drift[name])
