"""``query.backbone``: the server ships its backbone, in parts; and how other messages name the one they need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from flwr.app import ConfigRecord, RecordDict

from hyperlora.messages.codec import ProtocolError, checked_config, config_record, require

PART_BYTES = 32 * 2**20
"""Bytes of a part: far below Flower's 2 GiB for a message, and few messages for a large model."""
RECORD = "backbone"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BackbonePart:
    """The bytes ``offset`` to ``offset + len(data)`` of a backbone's safetensors file.

    Attributes:
        fingerprint: of the backbone, SHA-256 in hex.
        checksum: of the whole file, SHA-256 in hex.
        size: of the whole file in bytes.
        offset: where ``data`` begins.
        data: the bytes.
    """

    TYPE: ClassVar[str] = "query.backbone"
    fingerprint: str
    checksum: str
    size: int
    offset: int
    data: bytes

    def __post_init__(self) -> None:
        """Check digests, which name files, and ranges."""
        checked_digest(self.fingerprint)
        checked_digest(self.checksum)
        if not 0 <= self.offset < self.offset + len(self.data) <= self.size:
            raise ProtocolError(f"a part of {len(self.data)} bytes at {self.offset} is none of a file of {self.size}")

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        return RecordDict({"config": config_record(**vars(self))})

    @classmethod
    def decode(cls, content: RecordDict) -> BackbonePart:
        """Inverse of :meth:`encode`; raises ProtocolError."""
        config = checked_config(content)
        fingerprint, checksum = require(config, "fingerprint", str), require(config, "checksum", str)
        size, offset = require(config, "size", int), require(config, "offset", int)
        return cls(fingerprint, checksum, size, offset, require(config, "data", bytes))


@dataclass(frozen=True)
class BackboneReceipt:
    """How many bytes of the file the node has now."""

    received: int

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        return RecordDict({"config": config_record(received=self.received)})

    @classmethod
    def decode(cls, content: RecordDict) -> BackboneReceipt:
        """Inverse of :meth:`encode`; raises ProtocolError."""
        return cls(require(checked_config(content), "received", int))


def checked_digest(text: str) -> str:
    """Return ``text`` if it is a SHA-256 in hex; raises ProtocolError."""
    if not DIGEST.fullmatch(text):
        raise ProtocolError(f"expected a SHA-256 of 64 hex digits, got '{text[:80]}'")
    return text


def name_backbone(content: RecordDict, fingerprint: str) -> None:
    """Say in ``content`` which shipped backbone the message is for."""
    content[RECORD] = ConfigRecord({"fingerprint": fingerprint})


def named_backbone(content: RecordDict) -> str:
    """Return the fingerprint of the shipped backbone that a message is for; empty where it names none.

    Raises:
        ProtocolError: it is no fingerprint.
    """
    record = content.get(RECORD)
    return checked_digest(require(record, "fingerprint", str)) if isinstance(record, ConfigRecord) else ""
