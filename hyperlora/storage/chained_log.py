"""An append-only file of JSON lines in which no line can be changed, taken out or moved without being noticed.

A line holds its number, the SHA-256 of the line before and its own: digest = SHA-256(previous + content). Whoever may
write the file may still cut lines off its end or write all of it anew; who keeps the last digest elsewhere notices that
too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hyperlora.storage.files import StorageError, append_bytes, private_directory, storage_errors

BEGIN = "0" * 64
"""Stands for the digest of the line before the first."""
MOST_LINE = 2**20
PATIENCE = 30.0


class ChainError(StorageError):
    """The lines are not those that were written; the message is one sentence."""


class ChainedLog:
    """The log in one file of its owner's alone; processes that append to it take turns.

    Args:
        path: the file; it and its folder are made by the first :meth:`append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out inside the block; raises StorageError where one stays in it too long."""
        if not self.path.parent.exists():
            private_directory(self.path.parent)
        with storage_errors(self.path, "cannot be locked"):
            try:
                self._lock.acquire(timeout=PATIENCE)
            except Timeout:
                raise StorageError(f"'{self.path}' is held by another process") from None
        try:
            yield
        finally:
            self._lock.release()

    def append(self, entries: Sequence[Mapping[str, Any]]) -> list[int]:
        """Append ``entries`` and wait until they are on the disk; a line that a killed process left unfinished goes.

        Returns:
            Their numbers.

        Raises:
            ChainError: the last line is not a line of such a log.
            StorageError: they cannot be written.
        """
        if not entries:
            return []
        with self.held():
            number, previous = self._end()
            lines = []
            for entry in entries:
                number += 1
                lines.append(_line(number, previous, entry))
                previous = lines[-1]["digest"]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            append_bytes(self.path, text.encode())
        return [line["number"] for line in lines]

    def read(self) -> list[dict[str, Any]]:
        """Return all entries in order, each with its number and digest; none where there is no file.

        Raises:
            ChainError: a line was changed, taken out or moved, or is damaged.
        """
        if not self.path.exists():
            return []
        with storage_errors(self.path, "cannot be read"):
            content = self.path.read_bytes()
        found: list[dict[str, Any]] = []
        for number, text in enumerate(content.split(b"\n")[:-1], start=1):
            previous = found[-1]["digest"] if found else BEGIN
            found.append(_checked(self.path, number, previous, text))
        return found

    def _end(self) -> tuple[int, str]:
        """Cut an unfinished line off and return number and digest of the last line."""
        if not self.path.exists():
            return 0, BEGIN
        with storage_errors(self.path), self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * MOST_LINE))
            tail = file.read()
            finished = tail.rfind(b"\n") + 1
            if finished < len(tail):
                file.truncate(size - len(tail) + finished)
        last = tail[:finished].rstrip(b"\n").rpartition(b"\n")[2]
        if not last:
            return 0, BEGIN
        line = _parsed(self.path, last)
        return line["number"], line["digest"]


def _line(number: int, previous: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    content = {"number": number, "previous": previous, **entry}
    line = {**content, "digest": _digest(content)}
    if len(json.dumps(line)) > MOST_LINE:
        raise StorageError(f"an entry of more than {MOST_LINE} bytes does not fit into a log")
    return line


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
        if isinstance(line["number"], int) and isinstance(line["digest"], str):
            return dict(line)
    except (ValueError, LookupError, TypeError):
        pass
    raise ChainError(f"'{path}' holds a line that cannot be read: {text[:40]!r}")


def _checked(path: Path, number: int, previous: str, text: bytes) -> dict[str, Any]:
    line = _parsed(path, text)
    content = {name: value for name, value in line.items() if name != "digest"}
    if (line["number"], line.get("previous")) != (number, previous) or _digest(content) != line["digest"]:
        raise ChainError(
            f"'{path}' was changed: line {number} does not follow from the line before, so no line from it on counts"
        )
    return line
