"""Asking nodes who they are: signatures of their clients, and the backbone for nodes that lack it."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from flwr.app import RecordDict
from flwr.serverapp import Grid

from hyperlora.messages.signature import ClientCard, SignatureReply, SignatureRequest
from hyperlora.storage.allow_list import AllowListFile
from models.adapters.adapted_model import AdaptedModel
from strategies.federation.roster import FederationError, Roster
from strategies.federation.shipping import Shipment
from strategies.federation.transport import Exchange

POLL_SECONDS = 1.0
REFUSED_SECONDS = 3.0
log = logging.getLogger(__name__)


@dataclass
class Registrar:
    """Enters nodes and their clients in a roster.

    Attributes:
        fingerprint: of the server's backbone; a node with another one is left out.
        signature_size: numbers in a signature.
        num_classes: classes of the task.
        shipment: the backbone for nodes that lack it; None ships none.
        roster: who is known.
        required_rank: rank of the adapters that every client must train; 0 where a client may declare a lower one.
        least_bytes: of the factors in a message at rank 1, below which no client's budget may lie.
    """

    fingerprint: str
    signature_size: int
    num_classes: int
    shipment: Shipment | None = None
    roster: Roster = field(default_factory=Roster)
    required_rank: int = 0
    least_bytes: int = 0
    _warned: bool = False

    @classmethod
    def of(
        cls,
        model: AdaptedModel,
        num_classes: int,
        *,
        allowed: AllowListFile | None = None,
        shipment: Shipment | None = None,
        required_rank: int = 0,
        most_clients: int = 1,
        least_bytes: int = 0,
    ) -> Registrar:
        """Return a registrar with an empty roster for clients that have the backbone of ``model``.

        Args:
            model: the frozen backbone with an adapter on it.
            num_classes: classes of the task.
            allowed: which node may be which client; None lets any.
            shipment: the backbone for nodes that lack it; None ships none.
            required_rank: rank that every client must train; 0 where a client may declare a lower one.
            most_clients: clients of one node at most.
            least_bytes: of the factors in a message at rank 1.
        """
        signature_size = 2 * model.backbone.embed_dim + num_classes + 1
        roster = Roster(allowed, most_clients=most_clients)
        return cls(
            model.backbone.fingerprint, signature_size, num_classes, shipment, roster, required_rank, least_bytes
        )

    @property
    def shipped_fingerprint(self) -> str:
        """Fingerprint of the backbone that is shipped; empty where none is."""
        return self.shipment.fingerprint if self.shipment else ""

    def wait_for(self, grid: Grid, *, wanted: int, join_timeout: float, reply_timeout: float) -> None:
        """Refresh until ``wanted`` clients are there.

        Args:
            grid: Flower's.
            wanted: number of clients.
            join_timeout: seconds to wait for them.
            reply_timeout: seconds to wait for the answers to one request.

        Raises:
            FederationError: they are not there in time, or every node that came was refused.
        """
        began = time.monotonic()
        while True:
            self.refresh(grid, reply_timeout)
            joined, waited = len(self.roster.reachable()), time.monotonic() - began
            if joined >= max(wanted, 1):
                return
            hopeless = not joined and self.roster.left_out and waited >= REFUSED_SECONDS
            if waited >= join_timeout or hopeless:
                raise FederationError(self._shortage(wanted, join_timeout))
            log.info("waiting for clients: %d of %d, %.0f s left", joined, wanted, join_timeout - waited)
            time.sleep(min(POLL_SECONDS, join_timeout - waited))

    def await_training(self, grid: Grid, join_timeout: float, reply_timeout: float) -> bool:
        """Begin a round: refresh until a client that trains is connected; return whether any client is new or moved.

        Args:
            grid: Flower's.
            join_timeout: seconds to wait for one that comes back.
            reply_timeout: seconds to wait for the answers to one request.

        Raises:
            FederationError: none comes back in time.
        """
        changed, deadline = self.refresh(grid, reply_timeout), time.monotonic() + join_timeout
        while not any(card.trains for card in self.roster.reachable().values()):
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"no client that trains has been connected for {join_timeout:g} s: go on with --resume when they "
                    "are back (federation.join-timeout says how long a run waits)"
                )
            log.warning("no client that trains is connected; waiting")
            time.sleep(min(POLL_SECONDS, join_timeout))
            changed |= self.refresh(grid, reply_timeout)
        return changed

    def refresh(self, grid: Grid, reply_timeout: float) -> bool:
        """Begin a round: ask nodes that are new for their clients; return whether one was added or changed its node."""
        roster = self.roster
        roster.backoff.tick()
        keys = {node.node_id: node.public_key for node in grid.get_nodes()}
        new = roster.see(list(keys), keys)
        self._warn_of_strangers(new)
        before = dict(roster.nodes)
        lacking = self._ask(grid, new, reply_timeout)
        for node_id in self._ask(grid, self._ship(grid, lacking, reply_timeout), reply_timeout):
            roster.leave_out(f"node {node_id}", "it lacks the server's backbone")
        return before != roster.nodes

    def _warn_of_strangers(self, new: Collection[int]) -> None:
        """Say once that nothing binds the nodes of a deployment to their clients."""
        if self.roster.allowed is None and not self._warned and any(map(self.roster.is_deployed, new)):
            self._warned = True
            log.warning(
                "there is no allow-list (federation.allowed-clients): any node may speak for any client that is free"
            )

    def _ask(self, grid: Grid, node_ids: Collection[int], timeout: float) -> list[int]:
        """Ask nodes for their clients and return those that lack the backbone."""
        if not node_ids:
            return []
        exchange: Exchange[SignatureRequest] = Exchange()
        for node_id in node_ids:
            exchange.add(SignatureRequest(self.fingerprint), node_id=node_id, recipient=f"node {node_id}", ttl=timeout)
        self.roster.note_asked(node_ids)
        answers = exchange.ask(grid, timeout, self._decode)
        self.roster.note(answers.asked, answers.heard)
        for node_id in answers.silent:
            self.roster.note_silent([node_id], f"it sent no signature: {answers.failures[f'node {node_id}']}")
        for node_id in sorted(answers.heard):
            if f"node {node_id}" in answers.failures:
                self.roster.leave_out(f"node {node_id}", answers.failures[f"node {node_id}"])
        return [sent.node_id for sent, reply in answers.answered if self.roster.enter(sent.node_id, reply)]

    def _decode(self, content: RecordDict, request: SignatureRequest) -> SignatureReply:
        reply = SignatureReply.decode(content, signature_size=self.signature_size, num_classes=self.num_classes)
        reasons = {card.client_id: reason for card in reply.cards if (reason := self._objection(card))}
        cards = [card for card in reply.cards if card.client_id not in reasons]
        return replace(reply, cards=cards, left_out={**reply.left_out, **reasons})

    def _objection(self, card: ClientCard) -> str:
        if 0 < card.rank < self.required_rank:
            needed = f"this method needs rank {self.required_rank} of every client"
            return f"it trains adapters of rank {card.rank}, and {needed}"
        if 0 < card.most_bytes < self.least_bytes:
            return f"its budget is {card.most_bytes} bytes a message, and an adapter of rank 1 takes {self.least_bytes}"
        return ""

    def _ship(self, grid: Grid, node_ids: Collection[int], timeout: float) -> list[int]:
        """Ship the backbone to nodes that lack it and return those that have it now."""
        if not node_ids or self.shipment is None:
            return list(node_ids)
        delivery = self.shipment.send(grid, node_ids, timeout)
        self.roster.note(node_ids, set(node_ids) - delivery.silent)
        for node_id, reason in delivery.failed.items():
            self.roster.leave_out(f"node {node_id}", f"the backbone did not arrive: {reason}")
        self.roster.note_silent(delivery.silent, "it did not take the backbone within the time limit")
        return sorted(delivery.arrived)

    def _shortage(self, wanted: int, join_timeout: float) -> str:
        reasons = sorted(set(self.roster.left_out.values()))
        why = f"; left out: {' | '.join(reasons[:3])}" if reasons else ""
        return (
            f"expected {max(wanted, 1)} clients within {join_timeout:g} s, "
            f"{len(self.roster.reachable())} can take part{why}"
        )
