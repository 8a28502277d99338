"""``query.inputs``: before round 1 the server asks a client what its samples look like to the adapted modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import RecordDict

from hyperlora.messages.codec import (
    MOST_COUNTED,
    ProtocolError,
    arrays_of,
    checked_config,
    config_record,
    decode_tensors,
    encode_tensors,
    require,
)
from models.adapters.adapter import Adapter
from models.adapters.input_moments import InputMoments


@dataclass(frozen=True)
class InputsRequest:
    """Asks a client for the moments of its modules' inputs.

    Attributes:
        client_id: the client.
        server_round: the round, from 1.
        rank: rows of the factor of each covariance.
    """

    TYPE: ClassVar[str] = "query.inputs"
    client_id: str
    server_round: int
    rank: int

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        entries = {"client_id": self.client_id, "server_round": self.server_round, "rows": self.rank}
        return RecordDict({"config": config_record(**entries)})

    @classmethod
    def decode(cls, content: RecordDict, fresh: Adapter) -> InputsRequest:
        """Inverse of :meth:`encode`, ``fresh`` being the adapter before round 1; raises ProtocolError."""
        config = checked_config(content)
        rank, most = require(config, "rows", int), widest(fresh)
        if not 1 <= rank <= most:
            raise ProtocolError(f"{rank} rows of a covariance were asked for, the widest module reads {most} features")
        return cls(require(config, "client_id", str), require(config, "server_round", int), rank)


@dataclass(frozen=True)
class InputsReply:
    """The moments of one client."""

    client_id: str
    moments: InputMoments

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        counts = {f"{kind}.counts": counts for kind, counts in self.moments.counts.items()}
        rows = {f"{kind}.rows": rows for kind, rows in self.moments.rows.items()}
        config = config_record(client_id=self.client_id)
        return RecordDict({"config": config, "arrays": encode_tensors(counts | rows, np.float32)})

    @classmethod
    def decode(cls, content: RecordDict, request: InputsRequest, like: Adapter) -> InputsReply:
        """Inverse of :meth:`encode` for an adapter of the shapes of ``like``.

        Raises:
            ProtocolError: it is of another client, an array is not as asked for, or a count is not whole or below 1.
        """
        client_id = require(checked_config(content), "client_id", str)
        if client_id != request.client_id:
            raise ProtocolError("the inputs are of another client than the one that was asked")
        shapes: dict[str, tuple[int, ...]] = {}
        for kind, factors in like.low_rank.items():
            blocks, _, n = factors.shape
            shapes |= {f"{kind}.counts": (blocks,), f"{kind}.rows": (blocks, request.rank + 1, n)}
        counted = {f"{kind}.counts": MOST_COUNTED for kind in like.low_rank}
        parts = decode_tensors(arrays_of(content), shapes, counted)
        counts = {kind: parts[f"{kind}.counts"] for kind in like.low_rank}
        if not all(bool((one == one.round()).all()) and float(one.min()) >= 1 for one in counts.values()):
            raise ProtocolError("moments of inputs must count whole inputs, at least one for each module")
        return cls(client_id, InputMoments(counts, {kind: parts[f"{kind}.rows"] for kind in like.low_rank}))


def widest(adapter: Adapter) -> int:
    """Return the most features that one of the adapted modules reads."""
    return max(factors.shape[-1] for factors in adapter.low_rank.values())
