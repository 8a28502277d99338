"""The server's audit log, ``audit.jsonl`` of a run directory: what was sent to whom, what came back, what was decided.

Every message passes through the Grid, so the log is a Grid around Flower's. Digests are those of the sites' own logs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from hyperlora.config.schema import RunConfig
from hyperlora.messages.codec import content_digest, count_bytes
from hyperlora.storage.chained_log import ChainedLog
from server_app.wrapped_grid import WrappedGrid
from strategies.engine.records import RoundRecord
from strategies.federation.transport import error_sentence

FILE_NAME = "audit.jsonl"
AT_MOST = 50
"""Entries of a kind in one line, which has a largest size; the others go into further lines."""


def digest_of_settings(config: RunConfig) -> str:
    """Return the SHA-256 of a configuration: two runs with one digest have the same settings."""
    return hashlib.sha256(json.dumps(config.flat(), sort_keys=True).encode()).hexdigest()


class RunAudit:
    """The log of one run, over all of its continuations."""

    def __init__(self, directory: Path) -> None:
        self._log = ChainedLog(directory / FILE_NAME)
        self._left_out: dict[str, str] = {}

    def note(self, event: str, **entries: Any) -> None:
        """Write one line; raises StorageError."""
        self.note_all([{"event": event, **entries}])

    def note_all(self, entries: Sequence[Mapping[str, Any]]) -> list[int]:
        """Write lines and return their numbers; raises StorageError."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        return self._log.append([{"time": moment, **entry} for entry in entries])

    def note_round(self, record: RoundRecord, left_out: Mapping[str, str]) -> None:
        """Write what was decided in a round: who was asked, whose contribution is missing or cut, who takes no part."""
        new = {who: why for who, why in left_out.items() if self._left_out.get(who) != why}
        self._left_out = dict(left_out)
        named: dict[str, Mapping[str, Any]] = {
            "failures": record.failures,
            "missing_sums": record.missing_sums,
            "clipped": record.clipped,
            "drift": record.drift,
            "left_out": new,
        }
        number, cohort, privacy = record.server_round, record.cohort, record.privacy
        for start in range(0, max(1, len(cohort), *map(len, named.values())), AT_MOST):
            some = {name: dict(islice(one.items(), start, start + AT_MOST)) for name, one in named.items()}
            event = "round goes on" if start else "round"
            self.note(event, round=number, cohort=cohort[start : start + AT_MOST], privacy=privacy, **some)


class AuditedGrid(WrappedGrid):
    """Hands everything to ``grid`` and writes a line for every message that is sent and every reply that comes."""

    def __init__(self, grid: Grid, audit: RunAudit) -> None:
        super().__init__(grid)
        self._audit = audit
        self._asked: dict[str, dict[str, Any]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Write what is about to be sent, then send it."""
        sent = list(messages)
        entries = [{"event": "asked", **_named(one), **_measured(one)} for one in sent]
        numbers = self._audit.note_all(entries)
        ids = list(self._grid.push_messages(sent))
        for message_id, message, number in zip(ids, sent, numbers, strict=True):
            self._asked[message_id] = {**_named(message), "answers": number}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, written down first."""
        replies = list(self._grid.pull_messages(message_ids))
        known = [(self._asked.pop(one.metadata.reply_to_message_id, {}), one) for one in replies]
        self._audit.note_all([{"event": "answered", **asked, **_measured(reply)} for asked, reply in known])
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not used by the round loop, and written down all the same."""
        sent = list(messages)
        self._audit.note_all([{"event": "asked", **_named(one), **_measured(one)} for one in sent])
        replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        self._audit.note_all([{"event": "answered", **_measured(one)} for one in replies])
        return replies


def _named(message: Message) -> dict[str, Any]:
    """Return what was asked of whom."""
    metadata = message.metadata
    named: dict[str, Any] = {
        "type": metadata.message_type,
        "node": str(metadata.dst_node_id),
        "round": metadata.group_id,
    }
    config: Any = message.content.get("config")
    client_id = config.get("client_id") if config else None
    return named | ({"client": client_id} if client_id else {})


def _measured(message: Message) -> dict[str, Any]:
    """Return size and digest of a content, or the sentence of an error."""
    if message.has_error():
        return {"error": error_sentence(message)}
    return {"bytes": count_bytes(message.content), "content": content_digest(message.content)}
