"""Who takes part: clients by client-id, the node each one is reached at, and what is known of its data."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from hyperlora.messages.signature import ClientCard, SignatureReply
from hyperlora.storage.allow_list import AllowList, AllowListFile, node_key
from models.personalization.signature import Signature

FIRST_REST = 1
log = logging.getLogger(__name__)


class FederationError(RuntimeError):
    """The federation is not what the run needs; the message is one sentence."""


@dataclass
class Backoff:
    """Exponential back-off for silent nodes: one that does not answer is skipped, for twice as many rounds each time.

    A node that never answers is asked in rounds 1, 3, 6, 11, 20, ...: it delays about log2(rounds) rounds by the time
    limit instead of all of them. Any answer resets the back-off. Rounds are counted by ``clock``.
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

    def fell_silent(self, node_id: int) -> bool:
        """Tell whether a node did not answer in this very round."""
        return self.rests(node_id) and self._until[node_id] == self.clock + self._rests[node_id] + 1

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


@dataclass
class Roster:
    """The clients and nodes of a run, as far as they are known; it sends nothing.

    Attributes:
        allowed: which node key may speak for which client; None lets every node in.
        cards: client-id -> what is known of the client, also of those that left.
        nodes: client-id -> the node that it is reached at.
        left_out: node or client -> why it takes no part.
        backoff: which nodes are not asked for a while.
        most_clients: how many clients one node with a key of its own may host; simulated nodes host any number.
        changed: client-id -> the signature that was known, for clients that came (back) with another one.
        least: minimum number of clients in each of two groups, those that train and those that do not; if fewer are
            available, resting clients are asked as well, except those that fell silent in this very round.
    """

    allowed: AllowList | AllowListFile | None = None
    cards: dict[str, ClientCard] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    backoff: Backoff = field(default_factory=Backoff)
    most_clients: int = 1
    changed: dict[str, Signature] = field(default_factory=dict)
    least: int = 0
    _asked: set[int] = field(default_factory=set)
    _present: set[int] = field(default_factory=set)
    _keys: Mapping[int, bytes] = field(default_factory=dict)
    _refused_for: dict[int, int] = field(default_factory=dict)
    _barred: set[str] = field(default_factory=set)

    def reachable(self) -> dict[str, ClientCard]:
        """Return the clients whose node is connected and does not rest, by client-id; all where every node rests."""
        resting = self.resting()
        return {name: card for name, card in self._connected().items() if name not in resting}

    def resting(self) -> set[str]:
        """Return the clients whose node is connected and is not asked in this round, as it did not answer."""
        connected = self._connected()
        resting = {name for name in connected if self.backoff.rests(self.nodes[name])}
        for trains in (True, False):
            group = {name for name, card in connected.items() if card.trains == trains}
            if len(group - resting) < self.least:
                resting -= {name for name in group if not self.backoff.fell_silent(self.nodes[name])}
        return resting if resting != set(connected) else set()

    def note(self, asked: Collection[int], heard: Collection[int]) -> None:
        """Note which of the nodes ``asked`` answered; the others rest (:class:`Backoff`)."""
        self.backoff.note(asked, heard)

    def see(self, present: Collection[int], keys: Mapping[int, bytes]) -> list[int]:
        """Note the nodes that are connected, with their public keys, and return those to be asked who they are.

        A node that was refused because another one holds its client counts as new once that other one is gone or may
        no longer speak for the client.
        """
        self._present, self._keys = set(present), keys
        self._recheck()
        holders = {node for name, node in self.nodes.items() if node in self._present and name not in self._barred}
        for node_id in [one for one, holder in self._refused_for.items() if holder not in holders]:
            self._asked.discard(node_id)
            del self._refused_for[node_id]
        return sorted(one for one in self._present - self._asked if not self.backoff.rests(one))

    def _recheck(self) -> None:
        """Bar the clients whose permission is gone since their node was admitted, and let those in that have it again.

        A client is named when it is barred, not in every round that follows.
        """
        for name, node_id in self.nodes.items() if self.allowed is not None else ():
            objection = self._objection(node_id, name) if node_id in self._present else None
            if objection and name not in self._barred:
                self._barred.add(name)
                self.leave_out(f"client '{name}'", objection)
            elif not objection and name in self._barred:
                self._let_in(name)

    def _let_in(self, client_id: str) -> None:
        self._barred.discard(client_id)
        self.left_out.pop(f"client '{client_id}'", None)

    def note_asked(self, node_ids: Collection[int]) -> None:
        """Note that nodes were asked who they are."""
        self._asked |= set(node_ids)

    def note_silent(self, node_ids: Collection[int], reason: str) -> None:
        """Leave nodes out that did not answer; they are asked again later."""
        for node_id in node_ids:
            self.leave_out(f"node {node_id}", reason)
            self._asked.discard(node_id)

    def enter(self, node_id: int, reply: SignatureReply) -> bool:
        """Take over what a node says about its clients.

        Returns:
            Whether the node needs the server's backbone first and is allowed to have it.
        """
        self.left_out.pop(f"node {node_id}", None)
        names = {*(card.client_id for card in reply.cards), *reply.left_out}
        hosted = len(names | {name for name, holder in self.nodes.items() if holder == node_id})
        if hosted > self.most_clients and self.is_deployed(node_id):
            limit = f"federation.clients-per-node allows {self.most_clients}"
            self.leave_out(f"node {node_id}", f"it claims {hosted} clients, {limit}")
            return False
        for name, reason in reply.left_out.items():
            self._leave_out_for(node_id, name, reason)
        for card in reply.cards:
            self._admit(node_id, card)
        return bool(reply.needs_backbone) and self._is_allowed(node_id, reply.needs_backbone)

    def is_deployed(self, node_id: int) -> bool:
        """Tell whether a node is a SuperNode with a key pair, and not a part of a simulation."""
        return node_key(self._keys.get(node_id, b"")) is not None

    def take_changed(self) -> dict[str, Signature]:
        """Return ``changed`` and forget it."""
        changed, self.changed = self.changed, {}
        return changed

    def leave_out(self, who: str, reason: str) -> None:
        """Note and log why a node or client takes no part."""
        self.left_out[who] = reason
        log.warning("%s is left out: %s", who, reason)

    def _leave_out_for(self, node_id: int, client_id: str, reason: str) -> None:
        """Note why a client takes no part, as its node says; what a node says of another's client is its own fault."""
        holder = self.nodes.get(client_id, node_id)
        objection = self._objection(node_id, client_id)
        if objection or (holder != node_id and holder in self._present and client_id not in self._barred):
            whose = objection or f"node {holder} is that client"
            self.leave_out(f"node {node_id}", f"it tells why client '{client_id}' takes no part, but {whose}")
            return
        self.leave_out(f"client '{client_id}'", reason)

    def _connected(self) -> dict[str, ClientCard]:
        return {
            name: card
            for name, card in sorted(self.cards.items())
            if self.nodes.get(name) in self._present and name not in self._barred
        }

    def _admit(self, node_id: int, card: ClientCard) -> None:
        if not self._is_allowed(node_id, card.client_id):
            return
        holder = self.nodes.get(card.client_id)
        barred = card.client_id in self._barred
        if holder is not None and holder != node_id and holder in self._present and not barred:
            self._refused_for[node_id] = holder
            self.leave_out(f"node {node_id}", f"it claims client '{card.client_id}', which node {holder} is")
            return
        known = self.cards.get(card.client_id)
        if known is not None and known.signature.digest() != card.signature.digest():
            self.changed.setdefault(card.client_id, known.signature)
        self.cards[card.client_id], self.nodes[card.client_id] = self._as_known(card), node_id
        self._let_in(card.client_id)

    def _as_known(self, card: ClientCard) -> ClientCard:
        """Return the card with the signature that is known already where both say the same (rounding may differ)."""
        known = self.cards.get(card.client_id)
        same = known is not None and known.signature.digest() == card.signature.digest()
        return replace(card, signature=known.signature) if known is not None and same else card

    def _is_allowed(self, node_id: int, client_id: str) -> bool:
        """Tell whether a node may speak for a client; one that may not is left out."""
        objection = self._objection(node_id, client_id)
        if objection:
            self.leave_out(f"node {node_id}", objection)
        return objection is None

    def _objection(self, node_id: int, client_id: str) -> str | None:
        if self.allowed is None:
            return None
        return self.allowed.objection(client_id, self._keys.get(node_id, b""), datetime.now(UTC))
