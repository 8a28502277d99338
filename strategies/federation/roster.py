"""Who takes part: clients by client-id, the node each one is reached at, and what is known of its data.

Which nodes are worth asking: one that does not answer rests, for twice as many rounds each time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from flwr.app import Message
from flwr.serverapp import Grid

from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.signature import ClientCard, SignatureReply, SignatureRequest
from strategies.engine.transport import error_sentence, is_silence
from strategies.federation.allow_list import AllowList, AllowListFile
from strategies.federation.shipping import Shipment

FIRST_REST = 1


@dataclass
class Patience:
    """How long each silent node rests, in rounds of :attr:`clock`.

    A node that is silent in round 1 and whenever it is asked is asked in rounds 3, 6, 11, 20, ...: it delays some
    log2(rounds) rounds by the time limit, and not all of them. An answer of any kind makes its next rest short again.
    """

    clock: int = 0
    _rests: dict[int, int] = field(default_factory=dict)
    _until: dict[int, int] = field(default_factory=dict)

    def tick(self) -> None:
        """Begin the next round."""
        self.clock += 1

    def rests(self, node_id: int) -> bool:
        """Tell whether a node is not to be asked in this round."""
        return self.clock < self._until.get(node_id, 0)

    def note(self, asked: Iterable[int], answered: Iterable[int]) -> None:
        """Let the nodes among ``asked`` that are not among ``answered`` rest; what the others did is forgotten."""
        heard = set(answered)
        for node_id in set(asked):
            if node_id in heard:
                self._rests.pop(node_id, None)
                self._until.pop(node_id, None)
            else:
                rest = 2 * self._rests[node_id] if node_id in self._rests else FIRST_REST
                self._rests[node_id], self._until[node_id] = rest, self.clock + rest + 1


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
        shipment: the backbone for nodes that lack it; None ships none.

    ``left_out`` says of nodes and clients why they take no part; ``patience`` which nodes are not asked for a while.
    """

    fingerprint: str
    signature_size: int
    num_classes: int
    allowed: AllowList | AllowListFile | None = None
    shipment: Shipment | None = None
    cards: dict[str, ClientCard] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)
    _asked: set[int] = field(default_factory=set)
    _present: set[int] = field(default_factory=set)
    _keys: dict[int, bytes] = field(default_factory=dict)
    _held: dict[int, int] = field(default_factory=dict)

    def reachable(self) -> dict[str, ClientCard]:
        """Return the clients whose node is connected and does not rest, by client-id; all where every node rests."""
        resting = self.resting()
        return {name: card for name, card in self._connected().items() if name not in resting}

    def resting(self) -> set[str]:
        """Return the clients whose node is connected and is not asked in this round, as it did not answer."""
        connected = set(self._connected())
        resting = {name for name in connected if self.patience.rests(self.nodes[name])}
        return resting if resting != connected else set()

    def note(self, asked: Collection[int], heard: Collection[int]) -> None:
        """Note which of the nodes ``asked`` answered; the others rest (:class:`Patience`)."""
        self.patience.note(asked, heard)

    def _connected(self) -> dict[str, ClientCard]:
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
        """Begin a round: ask nodes that are new for their clients; return whether one was added or changed its node."""
        self.patience.tick()
        self._look(grid)
        new = sorted(one for one in self._present - self._asked if not self.patience.rests(one))
        before = dict(self.nodes)
        lacking = self._ask(grid, new, reply_timeout)
        for node_id in self._ask(grid, self._ship(grid, lacking, reply_timeout), reply_timeout):
            self._leave_out(f"node {node_id}", "it lacks the server's backbone")
        return before != self.nodes

    def _ask(self, grid: Grid, node_ids: Collection[int], timeout: float) -> list[int]:
        """Ask nodes for their clients and return those that lack the backbone."""
        if not node_ids:
            return []
        self._asked |= set(node_ids)
        messages = [self._question(node_id, timeout) for node_id in node_ids]
        replies = [one for one in grid.send_and_receive(messages, timeout=timeout) if not is_silence(one)]
        node_of = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        heard = {node_of[reply.metadata.reply_to_message_id] for reply in replies}
        self.note(node_ids, heard)
        self._note_silent(set(node_ids) - heard, "it sent no signature within the time limit")
        places = [node_of[reply.metadata.reply_to_message_id] for reply in replies]
        return [node_id for node_id, reply in zip(places, replies, strict=True) if self._enter(node_id, reply)]

    def _ship(self, grid: Grid, node_ids: Collection[int], timeout: float) -> list[int]:
        """Ship the backbone to nodes that lack it and return those that have it now."""
        if not node_ids or self.shipment is None:
            return list(node_ids)
        delivery = self.shipment.send(grid, node_ids, timeout)
        self.patience.note(node_ids, set(node_ids) - delivery.silent)
        for node_id, reason in delivery.failed.items():
            self._leave_out(f"node {node_id}", f"the backbone did not arrive: {reason}")
        self._note_silent(delivery.silent, "it did not take the backbone within the time limit")
        return sorted(delivery.arrived)

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

    def _enter(self, node_id: int, reply: Message) -> bool:
        """Take over what a node says of its clients; return whether it first needs the backbone."""
        try:
            if reply.has_error():
                raise ProtocolError(error_sentence(reply))
            answer = SignatureReply.decode(
                reply.content, signature_size=self.signature_size, num_classes=self.num_classes
            )
        except ProtocolError as error:
            self._leave_out(f"node {node_id}", str(error))
            return False
        self.left_out.pop(f"node {node_id}", None)
        for name, reason in answer.left_out.items():
            self._leave_out(f"client '{name}'", reason)
        for card in answer.cards:
            self._admit(node_id, card)
        return bool(answer.needs_backbone) and self._is_allowed(node_id, answer.needs_backbone)

    def _admit(self, node_id: int, card: ClientCard) -> None:
        if not self._is_allowed(node_id, card.client_id):
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

    def _is_allowed(self, node_id: int, client_id: str) -> bool:
        """Tell whether a node may speak for a client; one that may not is left out."""
        if self.allowed is None:
            return True
        objection = self.allowed.objection(client_id, self._keys.get(node_id, b""), datetime.now(UTC))
        if objection:
            self._leave_out(f"node {node_id}", objection)
        return objection is None

    def _note_silent(self, node_ids: Iterable[int], reason: str) -> None:
        for node_id in node_ids:
            self._leave_out(f"node {node_id}", reason)
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
