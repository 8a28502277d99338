"""The server's side of ``model.ship``: the backbone as one safetensors file, sent in parts to nodes that lack it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import Message
from flwr.serverapp import Grid

from hyperlora.messages.backbone import PART_BYTES, BackbonePart, BackboneReceipt
from hyperlora.messages.codec import ProtocolError
from strategies.engine.transport import TIMED_OUT, answered_by, error_sentence

log = logging.getLogger(__name__)


@dataclass
class Delivery:
    """What became of a shipment: the nodes that have it, why others do not, and who of those was silent."""

    arrived: set[int]
    failed: dict[int, str] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)


class Shipment:
    """A backbone that the server ships.

    Args:
        fingerprint: of the backbone.
        make: gives its safetensors file; called once, when the first node lacks it.
        part_bytes: most bytes in a message.
    """

    def __init__(self, fingerprint: str, make: Callable[[], bytes], part_bytes: int = PART_BYTES) -> None:
        self.fingerprint, self._make, self._part_bytes = fingerprint, make, part_bytes

    @cached_property
    def content(self) -> bytes:
        """The file."""
        return self._make()

    def send(self, grid: Grid, node_ids: Collection[int], timeout: float) -> Delivery:
        """Send all parts, one after another, to the nodes together; ``timeout`` is that of one part in seconds."""
        log.info("the backbone (%.1f MiB) is shipped to %d node(s)", len(self.content) / 2**20, len(node_ids))
        delivery = Delivery(set(node_ids))
        for part in self._parts():
            if delivery.arrived:
                self._send_part(grid, part, timeout, delivery)
        return delivery

    def _parts(self) -> Iterable[BackbonePart]:
        content, checksum = self.content, hashlib.sha256(self.content).hexdigest()
        for offset in range(0, len(content), self._part_bytes):
            data = content[offset : offset + self._part_bytes]
            yield BackbonePart(self.fingerprint, checksum, len(content), offset, data)

    def _send_part(self, grid: Grid, part: BackbonePart, timeout: float, delivery: Delivery) -> None:
        messages = [
            Message(content=part.encode(), dst_node_id=node_id, message_type=BackbonePart.TYPE, ttl=timeout)
            for node_id in sorted(delivery.arrived)
        ]
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        node_of = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        failed = dict.fromkeys(node_of.values(), TIMED_OUT)
        for reply in replies:
            node_id = node_of[reply.metadata.reply_to_message_id]
            reason = _objection(reply, part.offset + len(part.data))
            failed.pop(node_id) if not reason else failed.update({node_id: reason})
        delivery.failed |= failed
        delivery.silent |= set(node_of.values()) - answered_by(messages, replies)
        delivery.arrived -= set(failed)


def _objection(reply: Message, expected: int) -> str:
    """Return why a part did not arrive; empty where it did."""
    if reply.has_error():
        return error_sentence(reply)
    try:
        received = BackboneReceipt.decode(reply.content).received
    except ProtocolError as error:
        return str(error)
    return "" if received == expected else f"it has {received} bytes of the backbone, expected {expected}"
