"""The server's side of ``model.ship``: the backbone as one safetensors file, sent in parts to nodes that lack it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import RecordDict
from flwr.serverapp import Grid

from hyperlora.messages.backbone import PART_BYTES, BackbonePart, BackboneReceipt
from hyperlora.messages.codec import ProtocolError
from strategies.federation.transport import Exchange

log = logging.getLogger(__name__)


@dataclass
class Delivery:
    """What became of a shipment.

    Attributes:
        arrived: the nodes that have all of it.
        failed: node -> why it has not.
        silent: the nodes among those that did not answer at all.
    """

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
                _send_part(grid, part, timeout, delivery)
        return delivery

    def _parts(self) -> Iterable[BackbonePart]:
        content, checksum = self.content, hashlib.sha256(self.content).hexdigest()
        for offset in range(0, len(content), self._part_bytes):
            data = content[offset : offset + self._part_bytes]
            yield BackbonePart(self.fingerprint, checksum, len(content), offset, data)


def _send_part(grid: Grid, part: BackbonePart, timeout: float, delivery: Delivery) -> None:
    exchange: Exchange[BackbonePart] = Exchange()
    for node_id in sorted(delivery.arrived):
        exchange.add(part, node_id=node_id, recipient=str(node_id), ttl=timeout)
    answers = exchange.ask(grid, timeout, _checked_receipt)
    failed = {int(node_id): reason for node_id, reason in answers.failures.items()}
    delivery.failed |= failed
    delivery.silent |= set(answers.silent)
    delivery.arrived -= set(failed)


def _checked_receipt(content: RecordDict, part: BackbonePart) -> BackboneReceipt:
    receipt, expected = BackboneReceipt.decode(content), part.offset + len(part.data)
    if receipt.received != expected:
        raise ProtocolError(f"it has {receipt.received} bytes of the backbone, expected {expected}")
    return receipt
