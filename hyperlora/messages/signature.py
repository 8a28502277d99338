"""``query.signature``: the server asks a node which clients it hosts and what their data look like.

A client's name must be safe as a file name, in a table and in a line of a log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import RecordDict
from torch import Tensor

from hyperlora.messages.codec import (
    ProtocolError,
    arrays_of,
    checked_config,
    config_record,
    decode_tensors,
    encode_tensors,
    printable,
    require,
    require_list,
)
from models.personalization.signature import Signature

PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = ("anchor", "personal")
"""Names that something else than a client has in a run directory."""
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
"""What a simulation makes out of the name of a domain may be longer; it is safe as a file name all the same."""
MAX_SIGNATURE_BYTES = 4096
COUNT_TOLERANCE = 0.02
"""The logarithm of a number of samples travels as float16 where a signature is large."""
LEAST_FREQUENCY = 1e-12
MOST_CLIENTS, MOST_DOMAIN = 10_000, 100
"""Clients of one node, and characters of a domain."""
RULE = (
    "1 to 64 letters, digits, dots, dashes and underscores that begin with a letter or digit, "
    f"and none of {', '.join(RESERVED)}"
)


def is_file_name(text: str) -> bool:
    """Tell whether ``text`` names a file inside a directory, whatever the directory is."""
    return FILE_NAME.fullmatch(text) is not None


def is_client_id(text: str) -> bool:
    """Tell whether a client may be called ``text``."""
    return PATTERN.fullmatch(text) is not None and text.lower() not in RESERVED


def signature_objection(num_examples: int, signature: Signature) -> str | None:
    """Return why a client's signature is not believed, or None where nothing speaks against it."""
    if abs(math.log(num_examples) - signature.log_num_examples) > COUNT_TOLERANCE:
        return f"it says it has {num_examples} samples, and its signature is of another number of them"
    if bool((signature.feature_std < 0).any()):
        return "its signature has a negative standard deviation"
    if float(signature.class_frequencies.min()) < LEAST_FREQUENCY:
        return f"its signature has a class frequency below {LEAST_FREQUENCY:g}"
    return None


def _objection(card: ClientCard) -> str | None:
    """Return why a client cannot take part with its card, or None."""
    if card.client_id.lower() in RESERVED:
        return f"'{card.client_id}' is the name of something else in a run directory: give the client another name"
    if len(card.domain) > MOST_DOMAIN:
        return f"its domain has {len(card.domain)} characters, at most {MOST_DOMAIN} can be shown"
    return signature_objection(card.num_examples, card.signature)


def _signature_dtype(signatures: Mapping[str, Tensor]) -> type[np.floating[Any]]:
    large = any(4 * vector.numel() > MAX_SIGNATURE_BYTES for vector in signatures.values())
    return np.float16 if large else np.float32


@dataclass(frozen=True)
class SignatureRequest:
    """Asks a node which clients it hosts and what their data look like."""

    TYPE: ClassVar[str] = "query.signature"
    fingerprint: str

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        return RecordDict({"config": config_record(fingerprint=self.fingerprint)})

    @classmethod
    def decode(cls, content: RecordDict) -> SignatureRequest:
        """Inverse of :meth:`encode`; raises ProtocolError."""
        return cls(require(checked_config(content), "fingerprint", str))


@dataclass(frozen=True)
class ClientCard:
    """A client as the server knows it.

    Attributes:
        client_id: its name, stable over runs.
        domain: where its data come from; a label for reports, and what takes turns (``federation.domain-rounds``).
        trains: False for a client that only ever receives adapters (unseen).
        num_examples: number of its training samples.
        signature: description of its data.
        rank: the highest rank of an adapter that it can train; 0 where it takes any.
        most_bytes: of the LoRA factors in one message to or from it; 0 where it takes any number.
    """

    client_id: str
    domain: str
    trains: bool
    num_examples: int
    signature: Signature
    rank: int = 0
    most_bytes: int = 0


@dataclass(frozen=True)
class SignatureReply:
    """The clients of a node, and those that cannot take part with the reason.

    ``needs_backbone``: the client that waits for the server to ship its backbone (``model.ship``), if one does.
    """

    cards: Sequence[ClientCard]
    left_out: Mapping[str, str]
    needs_backbone: str = ""

    def encode(self) -> RecordDict:
        """Return the content of the message; a signature takes at most 4 KiB, as float16 where float32 takes more."""
        signatures = {card.client_id: card.signature.vector() for card in self.cards}
        config = config_record(
            client_ids=[card.client_id for card in self.cards],
            domains=[card.domain for card in self.cards],
            trains=[card.trains for card in self.cards],
            num_examples=[card.num_examples for card in self.cards],
            ranks=[card.rank for card in self.cards],
            most_bytes=[card.most_bytes for card in self.cards],
            left_out=list(self.left_out),
            reasons=list(self.left_out.values()),
            needs_backbone=self.needs_backbone,
        )
        return RecordDict({"config": config, "arrays": encode_tensors(signatures, _signature_dtype(signatures))})

    @classmethod
    def decode(cls, content: RecordDict, *, signature_size: int, num_classes: int) -> SignatureReply:
        """Inverse of :meth:`encode`.

        Raises:
            ProtocolError: a part is missing, malformed or out of range, or a client is named twice.
        """
        config = checked_config(content)
        ids = require_list(config, "client_ids", str)
        if len(set(ids)) != len(ids):
            raise ProtocolError("a client is named twice")
        if not all(is_file_name(name) for name in ids):
            raise ProtocolError("a client's name must be made of letters, digits, dots, dashes and underscores")
        names = require_list(config, "left_out", str)
        count = len(ids)
        if count + len(names) > MOST_CLIENTS:
            raise ProtocolError(f"{count + len(names)} clients at one node are more than {MOST_CLIENTS}")
        domains, trains = require_list(config, "domains", str, count), require_list(config, "trains", bool, count)
        numbers = [require_list(config, name, int, count) for name in ("num_examples", "ranks", "most_bytes")]
        vectors = decode_tensors(arrays_of(content), dict.fromkeys(ids, (signature_size,)))
        try:
            signatures = {name: Signature.from_vector(vectors[name], num_classes) for name in ids}
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        cards = [
            ClientCard(name, domain, training, examples, signatures[name], rank, most_bytes)
            for name, domain, training, examples, rank, most_bytes in zip(ids, domains, trains, *numbers, strict=True)
        ]
        if any(card.rank < 0 or card.most_bytes < 0 for card in cards):
            raise ProtocolError("neither the ranks nor the budgets of clients can be negative")
        if any(card.num_examples < 1 for card in cards):
            raise ProtocolError("a client without training samples cannot take part")
        reasons = require_list(config, "reasons", str, len(names))
        left_out = {printable(name): printable(reason) for name, reason in zip(names, reasons, strict=True)}
        left_out |= {card.client_id: reason for card in cards if (reason := _objection(card)) is not None}
        kept = [replace(card, domain=printable(card.domain)) for card in cards if card.client_id not in left_out]
        needs_backbone = require(config, "needs_backbone", str)
        if needs_backbone and not is_file_name(needs_backbone):
            raise ProtocolError("the client that needs the backbone has no name that a client may have")
        return cls(kept, left_out, needs_backbone)
