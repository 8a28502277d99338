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
    require_wire,
)
from hyperlora.messages.plan import (
    PARTS,
    PLAIN_PLAN,
    LocalPlan,
    chosen,
    core_shapes,
    decode_start,
    filled,
    plan_entries,
    start_records,
)
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.adapters.gradient import GRADIENT_KINDS, NO_GRADIENT, GradientSpec
from models.personalization.signature import Signature

MAX_SKETCH = 2**20


@dataclass(frozen=True)
class TrainRequest:
    """Sends a client its own start, and says what the reply is to tell of the validation gradient there.

    ``signature_digest`` is that of the signature the server holds; a client whose data changed sends a new one.
    ``wire`` is how adapters travel in this exchange (:mod:`hyperlora.messages.codec`); ``start`` is to be what the
    client reads (:func:`hyperlora.messages.plan.as_received`), so that rounding is not taken for a movement.
    """

    TYPE: ClassVar[str] = "train"
    client_id: str
    server_round: int
    local_steps: int
    start: Adapter
    wants: GradientSpec = NO_GRADIENT
    signature_digest: str = ""
    plan: LocalPlan = PLAIN_PLAN
    wire: str = "float32"

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        config = config_record(
            client_id=self.client_id,
            server_round=self.server_round,
            local_steps=self.local_steps,
            gradient=self.wants.kind,
            sketch_size=self.wants.size,
            signature_digest=self.signature_digest,
            wire=self.wire,
            **plan_entries(self.start, self.plan),
        )
        return RecordDict({"config": config, **start_records(self.start, self.plan, self.wire)})

    @classmethod
    def decode(cls, content: RecordDict, fresh: Adapter) -> TrainRequest:
        """Inverse of :meth:`encode`, ``fresh`` being the adapter before round 1; raises ProtocolError."""
        config = checked_config(content)
        wire = require_wire(config)
        start, plan = decode_start(content, config, fresh, wire)
        return cls(
            require(config, "client_id", str),
            require(config, "server_round", int),
            require(config, "local_steps", int),
            start,
            _wants(require(config, "gradient", str), require(config, "sketch_size", int)),
            require(config, "signature_digest", str),
            plan,
            wire,
        )


def _wants(kind: str, size: int) -> GradientSpec:
    if kind not in GRADIENT_KINDS or not (0 < size <= MAX_SKETCH or kind != "sketch"):
        raise ProtocolError(f"a gradient of kind '{kind}' and sketch size {size} cannot be told")
    return GradientSpec(kind, size)


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

    Of ``end`` only the parts ``up`` travel; ``core`` is the trained R by kind where the plan was to train one.
    """

    client_id: str
    server_round: int
    end: Adapter
    metrics: TrainMetrics
    gradient: Mapping[str, Tensor] = field(default_factory=dict)
    signature: Signature | None = None
    core: Mapping[str, Tensor] = field(default_factory=dict)
    up: Sequence[str] = PARTS

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
        if self.signature is not None:
            content["signature"] = encode_tensors({"signature": self.signature.vector()}, np.float32)
        return content

    def _encoded_end(self, request: TrainRequest | None) -> ArrayRecord:
        if request is None or request.wire == "float32":
            return encode_packed(chosen(self.end, self.up))
        chance = torch.Generator().manual_seed(derive_seed("wire", self.client_id, self.server_round))
        change = _entrywise(self.end, request.start, -1.0)
        return encode_packed(chosen(change, self.up), request.wire, chance)

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
        shapes = request.wants.shapes(request.start)
        gradient = decode_tensors(arrays_of(content, "gradient"), shapes) if shapes else {}
        cores = core_shapes(request.start, request.plan.trains)
        core = decode_tensors(arrays_of(content, "core"), cores) if cores else {}
        signature = _new_signature(content, request.start)
        return cls(*answered, end, metrics, gradient, signature, core, request.plan.up)


def _decoded_end(content: RecordDict, request: TrainRequest) -> Adapter:
    if request.wire == "float32":
        return filled(content, request.start, request.plan.up)
    zero = Adapter.from_tensors({name: torch.zeros_like(one) for name, one in request.start.tensors().items()})
    end = _entrywise(filled(content, zero, request.plan.up, request.wire), request.start, 1.0)
    require_moderate(end.tensors())
    return end


def _entrywise(left: Adapter, right: Adapter, sign: float) -> Adapter:
    """Return left + sign * right, entry by entry of the factors (not of the products)."""
    other = right.tensors()
    return Adapter.from_tensors({name: value + sign * other[name] for name, value in left.tensors().items()})
