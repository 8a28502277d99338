"""A site's audit log: a line for every message, saying who asked for what, whether it was answered, and what left."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import Message

from client_app.site import Site
from hyperlora.messages.codec import content_digest, count_bytes, printable
from hyperlora.storage.chained_log import ChainedLog

FILE_NAME = "audit.jsonl"


class SiteAudit:
    """Collects what is known of one message while it is worked on; the line is written when that ends, however it ends.

    A reply whose line cannot be written does not leave: the block raises StorageError. A site without a place for
    files has no log.
    """

    def __init__(self, log: ChainedLog | None, entry: dict[str, Any]) -> None:
        self._log, self._entry = log, entry

    @classmethod
    def of(cls, site: Site, message: Message, run_id: int) -> SiteAudit:
        """Begin the line of a message."""
        if not site.state_dir:
            return cls(None, {})
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": str(run_id),
            "asked": message.metadata.message_type,
            "round": message.metadata.group_id,
            "bytes": count_bytes(message.content),
            "content": content_digest(message.content),
        }
        return cls(ChainedLog(Path(site.state_dir) / site.client_id / FILE_NAME), entry)

    def note(self, **entries: Any) -> None:
        """Add entries to the line."""
        self._entry |= entries

    def note_reply(self, reply: Message) -> None:
        """Add what is about to leave."""
        if self._log is not None and reply.has_content():
            self.note(sent_bytes=count_bytes(reply.content), sent_content=content_digest(reply.content))

    def __enter__(self) -> SiteAudit:
        """Return the line."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the line: answered, or why not."""
        if self._log is not None:
            decision = {"decision": "answered"} if error is None else _refusal(error)
            self._log.append([self._entry | decision])


def _refusal(error: BaseException) -> dict[str, str]:
    return {"decision": type(error).__name__, "reason": printable(str(error))}
