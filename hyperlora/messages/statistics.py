"""``query.statistics``: the server asks a client what its classes look like in the feature space of an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import RecordDict

from hyperlora.messages.codec import (
    LARGEST,
    MOST_COUNTED,
    ProtocolError,
    arrays_of,
    checked_config,
    config_record,
    decode_tensors,
    encode_tensors,
    require,
)
from hyperlora.messages.plan import Start
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics

MAX_SCATTER_RANK = 2**14


@dataclass(frozen=True)
class StatisticsRequest:
    """Asks a client for the class statistics of its training samples.

    Attributes:
        client_id: the client.
        server_round: the round, from 1.
        rank: most rows of the factor of the scatter within classes.
        start: the adapter in whose feature space they are taken.
    """

    TYPE: ClassVar[str] = "query.statistics"
    client_id: str
    server_round: int
    rank: int
    start: Start

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        return self.start.message(client_id=self.client_id, server_round=self.server_round, scatter_rank=self.rank)

    @classmethod
    def decode(cls, content: RecordDict, fresh: Adapter) -> StatisticsRequest:
        """Inverse of :meth:`encode`, ``fresh`` being the adapter before round 1; raises ProtocolError."""
        config = checked_config(content)
        rank = require(config, "scatter_rank", int)
        if not 0 <= rank <= MAX_SCATTER_RANK:
            raise ProtocolError(f"a scatter of rank {rank} cannot be sent")
        return cls(
            require(config, "client_id", str),
            require(config, "server_round", int),
            rank,
            Start.decode(content, config, fresh),
        )


@dataclass(frozen=True)
class StatisticsReply:
    """The class statistics of one client."""

    client_id: str
    statistics: ClassStatistics

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        config = config_record(client_id=self.client_id, scatter_rows=len(self.statistics.scatter))
        return RecordDict({"config": config, "arrays": encode_tensors(self.statistics.tensors(), np.float32)})

    @classmethod
    def decode(cls, content: RecordDict, request: StatisticsRequest) -> StatisticsReply:
        """Inverse of :meth:`encode`.

        Raises:
            ProtocolError: it is of another client, an array is not as asked for, or a count is negative or broken.
        """
        config = checked_config(content)
        client_id, rows = require(config, "client_id", str), require(config, "scatter_rows", int)
        if client_id != request.client_id:
            raise ProtocolError("the statistics are of another client than the one that was asked")
        if not min(1, request.rank) <= rows <= request.rank:
            raise ProtocolError(f"the scatter has {rows} rows, 1 to {request.rank} were asked for")
        classes, columns = request.start.adapter.head.shape
        width = columns - 1
        shapes = {"counts": (classes,), "sums": (classes, width), "scatter": (rows, width), "remainder": (width,)}
        largest = {"counts": MOST_COUNTED, "sums": LARGEST * MOST_COUNTED, "remainder": LARGEST * MOST_COUNTED}
        parts = decode_tensors(arrays_of(content), shapes, largest)
        try:
            statistics = ClassStatistics(**parts)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        counts = statistics.counts
        if not bool((counts == counts.round()).all()) or counts.sum() < 1:
            raise ProtocolError("class statistics must count whole samples, at least one")
        if bool((statistics.sums.abs() > LARGEST * counts[:, None].clamp_min(1.0)).any()):
            raise ProtocolError(f"class statistics have means beyond {LARGEST:g}")
        if float(statistics.remainder.max()) > LARGEST * max(float(counts.sum()), 1.0):
            raise ProtocolError(f"class statistics have variances beyond {LARGEST:g}")
        if bool((statistics.sums[counts == 0] != 0).any()):
            raise ProtocolError("class statistics have a sum of features for a class without samples")
        return cls(client_id, statistics)
