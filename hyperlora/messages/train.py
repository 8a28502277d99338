"""``train``: the server sends a client its own start, the client sends back what it made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from hyperlora.messages.codec import (
    ProtocolError,
    arrays_of,
    checked_config,
    config_record,
    decode_tensors,
    encode_packed,
    encode_tensors,
    metrics_of,
    require,
    require_measured,
    require_moderate,
    require_steps,
)
from hyperlora.messages.plan import PARTS, Start, chosen, core_shapes, filled, optional_tensors
from hyperlora.messages.ragged import flattened
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.adapters.rank_budget import NO_RANKS
from models.adapters.weight_gradient import gradient_shapes
from models.personalization.signature import Signature


@dataclass(frozen=True)
class TrainRequest:
    """Sends a client its own start to train.

    Attributes:
        client_id: the client.
        server_round: the round, from 1.
        local_steps: optimiser steps to make.
        start: adapter and plan, as :meth:`hyperlora.messages.plan.Start.fitted` made them for this client.
        signature_digest: of the signature that the server holds; a client whose data changed sends a new signature.
        tells_sensitivity: whether the client reports the sensitivity of the loss to each module.
    """

    TYPE: ClassVar[str] = "train"
    client_id: str
    server_round: int
    local_steps: int
    start: Start
    signature_digest: str = ""
    tells_sensitivity: bool = False

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        return self.start.message(
            client_id=self.client_id,
            server_round=self.server_round,
            local_steps=self.local_steps,
            signature_digest=self.signature_digest,
            tells_sensitivity=self.tells_sensitivity,
        )

    @classmethod
    def decode(cls, content: RecordDict, fresh: Adapter) -> TrainRequest:
        """Inverse of :meth:`encode`, ``fresh`` being the adapter before round 1; raises ProtocolError."""
        config = checked_config(content)
        start, steps = Start.decode(content, config, fresh), require(config, "local_steps", int)
        require_steps([steps])
        return cls(
            require(config, "client_id", str),
            require(config, "server_round", int),
            steps,
            start,
            require(config, "signature_digest", str),
            require(config, "tells_sensitivity", bool),
        )


def _new_signature(content: RecordDict, start: Adapter) -> Signature | None:
    if "signature" not in content:
        return None
    classes, columns = start.head.shape
    shapes = {"signature": (2 * (columns - 1) + classes + 1,)}
    vector = decode_tensors(arrays_of(content, "signature"), shapes)["signature"]
    try:
        return Signature.from_vector(vector, classes)
    except ValueError as error:
        raise ProtocolError(str(error)) from error


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
        require_measured([self.train_loss, self.start_loss, self.end_loss, self.seconds])


@dataclass(frozen=True)
class TrainReply:
    """A trained adapter, its prior taken off, and what the client measured on its validation share.

    Only the parts ``up`` of ``end`` are sent. ``core`` is kind -> the trained R, if the plan trains one.
    ``sensitivity`` is kind -> (blocks,), the sensitivity of the loss to each module, if the request asks for it.
    """

    client_id: str
    server_round: int
    end: Adapter
    metrics: TrainMetrics
    gradient: Mapping[str, Tensor] = field(default_factory=dict)
    signature: Signature | None = None
    core: Mapping[str, Tensor] = field(default_factory=dict)
    up: Sequence[str] = PARTS
    sensitivity: Mapping[str, Tensor] = field(default_factory=dict)

    def encode(self, request: TrainRequest | None = None) -> RecordDict:
        """Return the content of the message, in the wire format of the ``request`` that is answered (float32 if none).

        A narrow format carries what changed, end - start, which is smaller than the end and is rounded less.
        """
        config = config_record(client_id=self.client_id, server_round=self.server_round)
        metrics = MetricRecord(asdict(self.metrics))
        content = RecordDict({"config": config, "arrays": self._encoded_end(request), "metrics": metrics})
        if self.core:
            content["core"] = encode_tensors(self.core, np.float32)
        if self.gradient:
            content["gradient"] = encode_tensors(self.gradient, np.float32)
        if self.sensitivity:
            content["sensitivity"] = encode_tensors(self.sensitivity, np.float32)
        if self.signature is not None:
            content["signature"] = encode_tensors({"signature": self.signature.vector()}, np.float32)
        return content

    def _encoded_end(self, request: TrainRequest | None) -> ArrayRecord:
        if request is None or request.start.wire == "float32":
            ranks = NO_RANKS if request is None else request.start.ranks
            return encode_packed(flattened(chosen(self.end, self.up), ranks))
        chance = torch.Generator().manual_seed(derive_seed("wire", self.client_id, self.server_round))
        change = _entrywise(self.end, request.start.adapter, -1.0)
        flat = flattened(chosen(change, self.up), request.start.ranks)
        return encode_packed(flat, request.start.wire, chance)

    @classmethod
    def decode(cls, content: RecordDict, request: TrainRequest) -> TrainReply:
        """Inverse of :meth:`encode`, for the reply to ``request``.

        Raises:
            ProtocolError: it answers another client or round, or a part is missing, malformed or not finite.
        """
        config = checked_config(content)
        answered = (require(config, "client_id", str), require(config, "server_round", int))
        if answered != (request.client_id, request.server_round):
            raise ProtocolError(
                f"expected client '{request.client_id}' in round {request.server_round}, got {answered}"
            )
        record = metrics_of(content)
        measured = {one.name: require(record, one.name, float) for one in fields(TrainMetrics)[1:]}
        metrics = TrainMetrics(require(record, "num_examples", int), **measured)
        end = _decoded_end(content, request)
        start, plan = request.start.adapter, request.start.plan
        shapes = gradient_shapes(start, plan.gradient_rank) if plan.gradient_rank else {}
        gradient = optional_tensors(content, "gradient", shapes)
        core = optional_tensors(content, "core", core_shapes(plan.frame))
        signature = _new_signature(content, start)
        return cls(*answered, end, metrics, gradient, signature, core, plan.up, _sensitivity(content, request))


def _sensitivity(content: RecordDict, request: TrainRequest) -> dict[str, Tensor]:
    blocks = {kind: (len(factors.B),) for kind, factors in request.start.adapter.low_rank.items()}
    told = optional_tensors(content, "sensitivity", blocks if request.tells_sensitivity else {})
    if any(bool((one < 0).any()) for one in told.values()):
        raise ProtocolError("what the loss depends on a module cannot be less than nothing")
    return told


def _decoded_end(content: RecordDict, request: TrainRequest) -> Adapter:
    start, up, wire, ranks = request.start.adapter, request.start.plan.up, request.start.wire, request.start.ranks
    if wire == "float32":
        return filled(content, start, up, ranks=ranks)
    zero = Adapter.from_tensors({name: torch.zeros_like(tensor) for name, tensor in start.tensors().items()})
    end = _entrywise(filled(content, zero, up, wire, ranks), start, 1.0)
    require_moderate(end.tensors())
    return end


def _entrywise(left: Adapter, right: Adapter, sign: float) -> Adapter:
    """Return left + sign * right, entry by entry of the factors (not of the products)."""
    other = right.tensors()
    return Adapter.from_tensors({name: value + sign * other[name] for name, value in left.tensors().items()})
