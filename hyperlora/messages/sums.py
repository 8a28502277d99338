"""``query.sum``: the five steps of a secure sum (:mod:`hyperlora.secure_sum`), one message to each client in each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from hyperlora.messages.codec import (
    ProtocolError,
    arrays_of,
    checked_config,
    config_record,
    encode_tensors,
    read_array,
    require,
)
from hyperlora.messages.questions import Question
from hyperlora.secure_sum.fixed_point import Vector
from hyperlora.secure_sum.public_keys import PublicKeys

STEPS = ("keys", "shares", "masked", "agree", "unmask")
Texts = Mapping[str, bytes]


@dataclass(frozen=True)
class SumRequest:
    """Asks one client for one step of a sum.

    Attributes:
        client_id: the client.
        server_round: the round, from 1.
        name: of the sum, unique within the run.
        step: one of ``STEPS``; each attribute below is used in the steps that it names.
        public: (``shares``) public keys of all participants.
        sealed: (``masked``) participant -> the shares that it encrypted for this client; empty if the two are not
            neighbours.
        clients: (``masked``) number of clients that were asked, which determines the layout of the answer.
        question: (``masked``) what is asked.
        answered: (``agree``, ``unmask``) clients in the sum, with their signatures of the step before.
        dropped: (``agree``, ``unmask``) clients that sent shares but are not in the sum.
    """

    TYPE: ClassVar[str] = "query.sum"
    client_id: str
    server_round: int
    name: str
    step: str
    public: Mapping[str, PublicKeys] = field(default_factory=dict)
    sealed: Texts = field(default_factory=dict)
    clients: int = 0
    question: Question | None = None
    answered: Texts = field(default_factory=dict)
    dropped: Sequence[str] = ()

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        body = {
            "public": {name: one.as_hex() for name, one in self.public.items()},
            "sealed": {name: one.hex() for name, one in self.sealed.items()},
            "answered": {name: one.hex() for name, one in self.answered.items()},
            "dropped": list(self.dropped),
        }
        config = config_record(
            client_id=self.client_id,
            server_round=self.server_round,
            name=self.name,
            step=self.step,
            clients=self.clients,
            kind=self.question.kind if self.question else "",
            noise=self.question.noise if self.question else 0.0,
            body=json.dumps(body),
        )
        records: dict[str, Any] = {"config": config}
        if self.question is not None:
            records["arrays"] = encode_tensors(self.question.public, np.float32)
        return RecordDict(records)

    @classmethod
    def decode(cls, content: RecordDict) -> SumRequest:
        """Inverse of :meth:`encode`; raises ProtocolError."""
        config = checked_config(content)
        body, kind, step = (
            _body(require(config, "body", str)),
            require(config, "kind", str),
            require(config, "step", str),
        )
        if step not in STEPS:
            raise ProtocolError(f"a sum has no step '{step}'")
        clients = require(config, "clients", int)
        if not 0 <= clients <= 2**20:
            raise ProtocolError(f"a sum over {clients} clients cannot be asked for")
        try:
            public = {name: PublicKeys.from_hex(own) for name, own in body["public"].items()}
            sealed, answered = (_all_bytes(body[key]) for key in ("sealed", "answered"))
            dropped = tuple(map(str, body["dropped"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ProtocolError(f"the body of a step of a sum is not as it should be: {error}") from error
        return cls(
            require(config, "client_id", str),
            require(config, "server_round", int),
            require(config, "name", str),
            step,
            public,
            sealed,
            clients,
            Question(kind, _tensors(arrays_of(content)), require(config, "noise", float)) if kind else None,
            answered,
            dropped,
        )


@dataclass(frozen=True)
class SumReply:
    """What a client answers to a step: texts by participant (keys, sealed shares, a signature, shares) or a vector."""

    client_id: str
    name: str
    step: str
    texts: Texts = field(default_factory=dict)
    masked: Vector | None = None

    @property
    def vector(self) -> Vector:
        """The masked vector; raises ProtocolError where the answer has none."""
        if self.masked is None:
            raise ProtocolError("the answer has no masked vector")
        return self.masked

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        body = json.dumps({name: one.hex() for name, one in self.texts.items()})
        config = config_record(client_id=self.client_id, name=self.name, step=self.step, body=body)
        if self.masked is None:
            return RecordDict({"config": config})
        return RecordDict({"config": config, "arrays": ArrayRecord({"masked": Array(self.masked)})})

    @classmethod
    def decode(cls, content: RecordDict, request: SumRequest) -> SumReply:
        """Inverse of :meth:`encode`, for the reply to ``request``; raises ProtocolError."""
        config = checked_config(content)
        told = tuple(require(config, entry, str) for entry in ("client_id", "name", "step"))
        if told != (request.client_id, request.name, request.step):
            raise ProtocolError(f"expected an answer to step '{request.step}' of '{request.name}', got one to another")
        texts = _all_bytes(_body(require(config, "body", str)))
        if request.step == "keys" and texts.keys() != {one.name for one in fields(PublicKeys)}:
            raise ProtocolError("expected two public keys, one for signatures, the digest of a seed and a signature")
        return cls(*told, texts, _masked(content) if request.step == "masked" else None)


def _masked(content: RecordDict) -> Vector:
    record = arrays_of(content)
    if set(record) != {"masked"} or record["masked"].dtype != "uint32" or len(record["masked"].shape) != 1:
        raise ProtocolError("expected one masked vector of integers")
    return read_array("masked", record["masked"]).copy()


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Return public tensors; raises ProtocolError where one is not finite or not of floats."""
    tensors = {}
    for name, array in record.items():
        if array.dtype != "float32":
            raise ProtocolError(f"array '{name}': expected float32, got {array.dtype}")
        tensors[name] = torch.from_numpy(read_array(name, array).copy())
    return tensors


def _body(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the body of a step of a sum cannot be read") from error
    if not isinstance(told, dict):
        raise ProtocolError("the body of a step of a sum cannot be read")
    return told


def _all_bytes(texts: Mapping[str, object]) -> dict[str, bytes]:
    return {name: _bytes(one) for name, one in texts.items()}


def _bytes(text: object) -> bytes:
    try:
        return bytes.fromhex(str(text))
    except ValueError as error:
        raise ProtocolError("a key or share is not written as hexadecimal digits") from error
