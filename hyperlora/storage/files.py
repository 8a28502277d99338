"""The only writer of files: a reader finds the old file or the new one, never a part of it.

What goes wrong is a :class:`StorageError` whose message is one sentence with the path and the system's reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

CACHE, OFF = "HYPERLORA_CACHE", "off"
PRIVATE_DIRECTORY, PRIVATE_FILE, ORDINARY_FILE = 0o700, 0o600, 0o666
UNFINISHED = ".*.tmp"
"""Pattern of the temporary files that a killed process leaves."""


class StorageError(ValueError):
    """A file cannot be read or written; the message is one sentence."""


@contextmanager
def storage_errors(path: Path | str, failure: str = "cannot be written") -> Iterator[None]:
    """Turn what the system refuses inside the block into a StorageError with ``path`` and ``failure``."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"'{path}' {failure}: {error.strerror or error}") from error


def write_bytes(path: Path, content: bytes, *, durable: bool = True, mode: int = ORDINARY_FILE) -> None:
    """Write ``content`` to ``path`` in one step, by way of a temporary file in the same folder.

    Args:
        path: the file; an old one is replaced, a missing folder is made.
        content: all of the file.
        durable: wait until it is on the disk (fsync); without, it survives the process but not a power cut.
        mode: permissions, from which the process's umask is taken off.

    Raises:
        StorageError: it cannot be written; the old file is then still there.
    """
    with storage_errors(path):
        new = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for directory in [path.parent, *([path.parent.parent] if new else [])] if durable else []:
            _sync_directory(directory)


def write_text(path: Path, text: str, *, durable: bool = True, mode: int = ORDINARY_FILE) -> None:
    """Write ``text`` in UTF-8; otherwise as :func:`write_bytes`."""
    write_bytes(path, text.encode(), durable=durable, mode=mode)


def write_json(path: Path, value: Any, *, durable: bool = True, mode: int = ORDINARY_FILE) -> None:
    """Write ``value`` as indented JSON; otherwise as :func:`write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n", durable=durable, mode=mode)


def append_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Append ``content`` to a file of its owner's alone, ``durable`` as in :func:`write_bytes`; raises StorageError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with storage_errors(path), os.fdopen(os.open(path, flags, PRIVATE_FILE), "ab") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())


@contextmanager
def private_files() -> Iterator[None]:
    """Let whatever is written inside the block, by this package or another, be its owner's alone."""
    before = os.umask(0o777 - PRIVATE_DIRECTORY)
    try:
        yield
    finally:
        os.umask(before)


def private_directory(path: Path) -> Path:
    """Make a folder that its owner alone may enter, or make the one there private; raises StorageError."""
    with storage_errors(path, "cannot be made private"):
        path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        path.chmod(PRIVATE_DIRECTORY)
    return path


def home_directory() -> Path:
    """Return the user's home directory; raises StorageError where the user has none, as in a container."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise StorageError("this user has no home directory: set HOME") from error


def cache_directory() -> Path:
    """Return where this program keeps what it can make again; raises StorageError where nothing says where.

    ``HYPERLORA_CACHE`` names it (``off`` there is about embeddings alone), else it is ``hyperlora`` in
    ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    place = os.environ.get(CACHE, "")
    if place and place != OFF:
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or home_directory() / ".cache") / "hyperlora"


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files that a killed process left in ``directory``; raises OSError."""
    for path in directory.glob(UNFINISHED):
        path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a renaming durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
