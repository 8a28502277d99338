"""``evaluate``: all adapters that a client is to score in a round, in one message, and one reply for all of them.

A message costs a deployment about ten seconds, in which a process starts and loads the backbone; scoring one adapter
more costs a fraction of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flwr.app import RecordDict

from hyperlora.messages.codec import ProtocolError, checked_config, config_record, require
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from models.adapters.adapter import Adapter

MOST_PARTS = 64
"""Adapters that a client is asked to score in one message."""


@dataclass(frozen=True)
class EvaluateBatch:
    """Asks one client to score several adapters, one after the other.

    Attributes:
        requests: one for each adapter, all of one client and round, each of another track.
    """

    TYPE: ClassVar[str] = "evaluate"
    requests: Sequence[EvaluateRequest]

    def __post_init__(self) -> None:
        """Check that all parts are of one client and round, and that their tracks differ."""
        owners = {(request.client_id, request.server_round) for request in self.requests}
        if len(owners) != 1:
            raise ProtocolError(f"expected requests of one client in one round, got {sorted(owners)}")
        if len({request.track for request in self.requests}) < len(self.requests):
            raise ProtocolError("a track is asked for twice in one message")

    @property
    def client_id(self) -> str:
        """The client."""
        return self.requests[0].client_id

    @property
    def server_round(self) -> int:
        """The round."""
        return self.requests[0].server_round

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        content = bundled([request.encode() for request in self.requests])
        content["config"] = config_record(client_id=self.client_id, server_round=self.server_round)
        return content

    @classmethod
    def decode(cls, content: RecordDict, fresh: Adapter) -> EvaluateBatch:
        """Inverse of :meth:`encode`, ``fresh`` being the adapter before round 1; raises ProtocolError."""
        config = checked_config(content)
        owner = (require(config, "client_id", str), require(config, "server_round", int))
        batch = cls([EvaluateRequest.decode(part, fresh) for part in unbundled(content)])
        if owner != (batch.client_id, batch.server_round):
            raise ProtocolError(f"a message for client '{owner[0]}' in round {owner[1]} has parts for another one")
        return batch


@dataclass(frozen=True)
class EvaluateReplies:
    """The replies to the parts of a batch, in their order."""

    replies: Sequence[EvaluateReply]

    def encode(self) -> RecordDict:
        """Return the content of the message."""
        return bundled([reply.encode() for reply in self.replies])

    @classmethod
    def decode(cls, content: RecordDict, batch: EvaluateBatch) -> EvaluateReplies:
        """Inverse of :meth:`encode`, for the reply to ``batch``; raises ProtocolError."""
        parts = unbundled(content)
        if len(parts) != len(batch.requests):
            raise ProtocolError(f"expected {len(batch.requests)} replies in one message, got {len(parts)}")
        return cls([EvaluateReply.decode(*one) for one in zip(parts, batch.requests, strict=True)])


def bundled(parts: Sequence[RecordDict]) -> RecordDict:
    """Return the records of all ``parts`` in one content; those of part 2 are called ``2 config``, ``2 arrays``."""
    return RecordDict({f"{number} {name}": one for number, part in enumerate(parts) for name, one in part.items()})


def unbundled(content: RecordDict) -> list[RecordDict]:
    """Inverse of :func:`bundled`; records of other names are passed over.

    Raises:
        ProtocolError: there is no part, there are too many, or they are not numbered one after the other.
    """
    parts: dict[str, RecordDict] = {}
    for full, record in content.items():
        number, space, name = full.partition(" ")
        if space:
            parts.setdefault(number, RecordDict())[name] = record
    wanted = [str(number) for number in range(len(parts))]
    if not 1 <= len(parts) <= MOST_PARTS or set(parts) != set(wanted):
        raise ProtocolError(
            f"expected 1 to {MOST_PARTS} parts numbered from 0, got {', '.join(sorted(parts)[:4]) or 'none'}"
        )
    return [parts[number] for number in wanted]
