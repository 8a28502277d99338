"""The three messages of a run and their replies, each a dataclass with an encode and a decode.

==================  =======================================  ==============================================
message type        request                                  reply
==================  =======================================  ==============================================
query.signature     fingerprint of the backbone              one card per client that the node hosts
train               the client's start and local budget      the trained adapter and what it was worth
evaluate            an adapter and numbers of local steps    accuracy after each, on the client's own test
==================  =======================================  ==============================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from models.adapter import Adapter
from models.signature import Signature
from protocol.records import (
    ProtocolError,
    adapter_shapes,
    arrays_of,
    config_of,
    decode_adapter,
    decode_tensors,
    encode_adapter,
    encode_tensors,
    metrics_of,
    require,
    require_list,
)

PROTOCOL_VERSION = 1
MAX_SIGNATURE_BYTES = 4096

Shapes = Mapping[str, tuple[int, ...]]


def _config(**entries: Any) -> ConfigRecord:
    return ConfigRecord({"version": PROTOCOL_VERSION, **entries})


def _checked_config(content: RecordDict) -> ConfigRecord:
    config = config_of(content)
    version = require(config, "version", int)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the message has protocol version {version}, this side speaks {PROTOCOL_VERSION}"
        )
    return config


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
        return RecordDict({"config": _config(fingerprint=self.fingerprint)})

    @classmethod
    def decode(cls, content: RecordDict) -> SignatureRequest:
        """Inverse of :meth:`encode`; raises ProtocolError."""
        return cls(require(_checked_config(content), "fingerprint", str))


@dataclass(frozen=True)
class ClientCard:
    """A client as the server knows it.

    Attributes:
        client_id: its name, stable over runs.
        domain: where its data come from; a label for reports only.
        trains: False for a client that only ever receives adapters (unseen).
        num_examples: number of its training samples.
        signature: description of its data.
    """

    client_id: str
    domain: str
    trains: bool
    num_examples: int
    signature: Signature


@dataclass(frozen=True)
class SignatureReply:
    """The clients of a node, and those that cannot take part with the reason."""

    cards: Sequence[ClientCard]
    left_out: Mapping[str, str]

    def encode(self) -> RecordDict:
        """Return the content of the message; a signature takes at most 4 KiB, as float16 where float32 takes more."""
        signatures = {card.client_id: card.signature.vector() for card in self.cards}
        config = _config(
            client_ids=[card.client_id for card in self.cards],
            domains=[card.domain for card in self.cards],
            trains=[card.trains for card in self.cards],
            num_examples=[card.num_examples for card in self.cards],
            left_out=list(self.left_out),
            reasons=list(self.left_out.values()),
        )
        return RecordDict(
            {"config": config, "arrays": encode_tensors(signatures, _signature_dtype(signatures))}
        )

    @classmethod
    def decode(cls, content: RecordDict, *, signature_size: int, num_classes: int) -> SignatureReply:
        """Inverse of :meth:`encode`.

        Raises:
            ProtocolError: a part is missing, malformed or out of range, or a client is named twice.
        """
        config = _checked_config(content)
        ids = [str(one) for one in config.get("client_ids", [])]  # type: ignore[union-attr]
        if len(set(ids)) != len(ids):
            raise ProtocolError("a client is named twice")
        columns = {"client_ids": str, "domains": str, "trains": bool, "num_examples": int}
        rows = zip(
            *(require_list(config, name, kind, len(ids)) for name, kind in columns.items()), strict=True
        )
        vectors = decode_tensors(arrays_of(content), {name: (signature_size,) for name in ids})
        try:
            signatures = {name: Signature.from_vector(vectors[name], num_classes) for name in ids}
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        cards = [ClientCard(*row, signature=signatures[str(row[0])]) for row in rows]  # type: ignore[arg-type]
        if any(card.num_examples < 1 for card in cards):
            raise ProtocolError("a client without training samples cannot take part")
        left_out = require_list(config, "left_out", str, len(config.get("left_out", [])))  # type: ignore[arg-type]
        reasons = require_list(config, "reasons", str, len(left_out))
        return cls(cards, {str(one): str(why) for one, why in zip(left_out, reasons, strict=True)})


@dataclass(frozen=True)
class TrainRequest:
    """Sends a client its own start."""

    TYPE: ClassVar[str] = "train"
    client_id: str
    server_round: int
    local_steps: int
    start: Adapter

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        config = _config(
            client_id=self.client_id, server_round=self.server_round, local_steps=self.local_steps
        )
        return RecordDict({"config": config, "arrays": encode_adapter(self.start)})

    @classmethod
    def decode(cls, content: RecordDict, shapes: Shapes) -> TrainRequest:
        """Inverse of :meth:`encode`; raises ProtocolError."""
        config = _checked_config(content)
        return cls(
            require(config, "client_id", str),
            require(config, "server_round", int),
            require(config, "local_steps", int),
            decode_adapter(arrays_of(content), shapes),
        )


@dataclass(frozen=True)
class TrainMetrics:
    """What a client measured while it trained; losses are mean cross-entropies in nats, accuracies shares."""

    num_examples: int
    train_loss: float
    start_loss: float
    start_accuracy: float
    end_loss: float
    end_accuracy: float
    seconds: float

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_examples < 1 or self.seconds < 0:
            raise ProtocolError(f"num_examples {self.num_examples} or seconds {self.seconds} out of range")
        if not (0 <= self.start_accuracy <= 1 and 0 <= self.end_accuracy <= 1):
            raise ProtocolError(f"accuracies {self.start_accuracy}, {self.end_accuracy} are not shares")


@dataclass(frozen=True)
class TrainReply:
    """A trained adapter, its prior taken off, and what the client measured on its validation share."""

    client_id: str
    server_round: int
    end: Adapter
    metrics: TrainMetrics

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        config = _config(client_id=self.client_id, server_round=self.server_round)
        metrics = MetricRecord(asdict(self.metrics))
        return RecordDict({"config": config, "arrays": encode_adapter(self.end), "metrics": metrics})

    @classmethod
    def decode(cls, content: RecordDict, request: TrainRequest) -> TrainReply:
        """Inverse of :meth:`encode`, for the reply to ``request``.

        Raises:
            ProtocolError: it answers another client or round, or a part is missing, malformed or not finite.
        """
        config = _checked_config(content)
        answered = (require(config, "client_id", str), require(config, "server_round", int))
        if answered != (request.client_id, request.server_round):
            raise ProtocolError(
                f"expected client '{request.client_id}' in round {request.server_round}, got {answered}"
            )
        record = metrics_of(content)
        kinds = {"num_examples": int}
        values = {
            one.name: require(record, one.name, kinds.get(one.name, float)) for one in fields(TrainMetrics)
        }
        end = decode_adapter(arrays_of(content), adapter_shapes(request.start))
        return cls(*answered, end, TrainMetrics(**values))  # type: ignore[arg-type]


@dataclass(frozen=True)
class EvaluateRequest:
    """Asks what an adapter is worth on the client's own test split after each number of local steps."""

    TYPE: ClassVar[str] = "evaluate"
    client_id: str
    server_round: int
    steps: Sequence[int]
    adapter: Adapter

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        config = _config(client_id=self.client_id, server_round=self.server_round, steps=list(self.steps))
        return RecordDict({"config": config, "arrays": encode_adapter(self.adapter)})

    @classmethod
    def decode(cls, content: RecordDict, shapes: Shapes) -> EvaluateRequest:
        """Inverse of :meth:`encode`; raises ProtocolError."""
        config = _checked_config(content)
        steps = config.get("steps")
        if not isinstance(steps, list) or not steps or any(type(one) is not int or one < 0 for one in steps):
            raise ProtocolError(f"entry 'steps': expected numbers of local steps, got {steps!r}")
        return cls(
            require(config, "client_id", str),
            require(config, "server_round", int),
            sorted(steps),  # type: ignore[type-var, arg-type]
            decode_adapter(arrays_of(content), shapes),
        )


@dataclass(frozen=True)
class EvaluateReply:
    """Test accuracy and loss, and validation loss, one entry per number of local steps asked for."""

    client_id: str
    num_test: int
    test_accuracy: Sequence[float]
    test_loss: Sequence[float]
    validation_loss: Sequence[float]
    seconds: float

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        metrics = MetricRecord(
            {
                "num_test": self.num_test,
                "test_accuracy": list(self.test_accuracy),
                "test_loss": list(self.test_loss),
                "validation_loss": list(self.validation_loss),
                "seconds": self.seconds,
            }
        )
        return RecordDict({"config": _config(client_id=self.client_id), "metrics": metrics})

    @classmethod
    def decode(cls, content: RecordDict, request: EvaluateRequest) -> EvaluateReply:
        """Inverse of :meth:`encode`, for the reply to ``request``; raises ProtocolError."""
        client_id = require(_checked_config(content), "client_id", str)
        if client_id != request.client_id:
            raise ProtocolError(f"expected client '{request.client_id}', got '{client_id}'")
        record, count = metrics_of(content), len(request.steps)
        names = ("test_accuracy", "test_loss", "validation_loss")
        accuracy, loss, validation = (require_list(record, name, float, count) for name in names)
        if any(not 0 <= one <= 1 for one in accuracy):  # type: ignore[operator]
            raise ProtocolError(f"test accuracies {accuracy} are not shares")
        num_test, seconds = require(record, "num_test", int), require(record, "seconds", float)
        return cls(client_id, num_test, accuracy, loss, validation, seconds)  # type: ignore[arg-type]
