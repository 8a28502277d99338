"""Who takes part: clients by client-id, the node each one is reached at, and what is known of its data."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from flwr.app import Message
from flwr.serverapp import Grid

from protocol.records import ProtocolError
from protocol.signature_messages import ClientCard, SignatureReply, SignatureRequest
from strategies.allow_list import AllowList, AllowListFile
from strategies.exchange import error_sentence

log = logging.getLogger(__name__)
POLL_SECONDS = 1.0
REFUSED_SECONDS = 3.0


class FederationError(RuntimeError):
    """The federation is not what the run needs; the message is one sentence."""


@dataclass
class Roster:
    """The clients of a run.

    Args:
        fingerprint: of the server's backbone; a node with another one is left out.
        signature_size: numbers in a signature.
        num_classes: classes of the task.
        allowed: which node key may speak for which client; None lets every node in.
    """

    fingerprint: str
    signature_size: int
    num_classes: int
    allowed: AllowList | AllowListFile | None = None
    cards: dict[str, ClientCard] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    _asked: set[int] = field(default_factory=set)
    _present: set[int] = field(default_factory=set)
    _keys: dict[int, bytes] = field(default_factory=dict)
    _held: dict[int, int] = field(default_factory=dict)

    def reachable(self) -> dict[str, ClientCard]:
        """Return the clients whose node is connected, by client-id."""
        return {name: card for name, card in sorted(self.cards.items()) if self.nodes.get(name) in self._present}

    def wait_for(self, grid: Grid, *, wanted: int, join_timeout: float, reply_timeout: float) -> None:
        """Refresh until ``wanted`` clients are there.

        Raises:
            FederationError: they are not, ``join_timeout`` seconds later, or every node that came was refused.
        """
        began = time.monotonic()
        while True:
            self.refresh(grid, reply_timeout)
            joined, waited = len(self.reachable()), time.monotonic() - began
            if joined >= max(wanted, 1):
                return
            hopeless = not joined and self.left_out and waited >= REFUSED_SECONDS
            if waited >= join_timeout or hopeless:
                raise FederationError(self._shortage(wanted, join_timeout))
            log.info("waiting for clients: %d of %d, %.0f s left", joined, wanted, join_timeout - waited)
            time.sleep(min(POLL_SECONDS, join_timeout - waited))

    def refresh(self, grid: Grid, reply_timeout: float) -> bool:
        """Ask nodes that are new for their clients; return whether a client was added or changed its node."""
        self._look(grid)
        new = sorted(self._present - self._asked)
        self._asked |= set(new)
        if not new:
            return False
        messages = [self._question(node_id, reply_timeout) for node_id in new]
        replies = grid.send_and_receive(messages, timeout=reply_timeout)
        node_of = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        before = dict(self.nodes)
        for reply in replies:
            self._enter(node_of[reply.metadata.reply_to_message_id], reply)
        self._note_silent(node_of.values(), replies, node_of)
        return before != self.nodes

    def _look(self, grid: Grid) -> None:
        """Note who is there; a node that was refused for another that is gone by now counts as new."""
        if self.allowed is not None:
            self._keys = {node.node_id: node.public_key for node in grid.get_nodes()}
        self._present = set(self._keys) if self.allowed is not None else set(grid.get_node_ids())
        for node_id in [one for one, holder in self._held.items() if holder not in self._present]:
            self._asked.discard(node_id)
            del self._held[node_id]

    def _question(self, node_id: int, timeout: float) -> Message:
        content = SignatureRequest(self.fingerprint).encode()
        return Message(content=content, dst_node_id=node_id, message_type=SignatureRequest.TYPE, ttl=timeout)

    def _enter(self, node_id: int, reply: Message) -> None:
        try:
            if reply.has_error():
                raise ProtocolError(error_sentence(reply))
            answer = SignatureReply.decode(
                reply.content, signature_size=self.signature_size, num_classes=self.num_classes
            )
        except ProtocolError as error:
            self._leave_out(f"node {node_id}", str(error))
            return
        for name, reason in answer.left_out.items():
            self._leave_out(f"client '{name}'", reason)
        for card in answer.cards:
            self._admit(node_id, card)

    def _admit(self, node_id: int, card: ClientCard) -> None:
        if self.allowed is not None:
            key, now = self._keys.get(node_id, b""), datetime.now(UTC)
            if objection := self.allowed.objection(card.client_id, key, now):
                self._leave_out(f"node {node_id}", objection)
                return
        holder = self.nodes.get(card.client_id)
        if holder is not None and holder != node_id and holder in self._present:
            self._held[node_id] = holder
            self._leave_out(f"node {node_id}", f"it claims client '{card.client_id}', which node {holder} is")
            return
        self.cards[card.client_id], self.nodes[card.client_id] = self._as_known(card), node_id

    def _as_known(self, card: ClientCard) -> ClientCard:
        """Return the card with the signature that is known already where both say the same (rounding may differ)."""
        known = self.cards.get(card.client_id)
        same = known is not None and known.signature.digest() == card.signature.digest()
        return replace(card, signature=known.signature) if known is not None and same else card

    def _note_silent(self, asked: Iterable[int], replies: Iterable[Message], node_of: Mapping[str, int]) -> None:
        answered = {node_of[reply.metadata.reply_to_message_id] for reply in replies}
        for node_id in set(asked) - answered:
            self._leave_out(f"node {node_id}", "it sent no signature within the time limit")
            self._asked.discard(node_id)

    def _leave_out(self, who: str, reason: str) -> None:
        self.left_out[who] = reason
        log.warning("%s is left out: %s", who, reason)

    def _shortage(self, wanted: int, join_timeout: float) -> str:
        reasons = sorted(set(self.left_out.values()))
        why = f"; left out: {' | '.join(reasons[:3])}" if reasons else ""
        return (
            f"expected {max(wanted, 1)} clients within {join_timeout:g} s, {len(self.reachable())} can take part{why}"
        )
