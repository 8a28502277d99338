"""One state, one file: safetensors, whose metadata hold the description, the kind, the version and a checksum.

The checksum covers everything that the value is made of: kind, description, and of every tensor the name, dtype,
shape and bytes. What a file holds is therefore either what was written or refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load, save
from torch import Tensor

from hyperlora.storage.state_tree import StateError, pack, unpack

FORMAT_VERSION = 1
KEY = "state"
"""The one entry of the metadata; safetensors writes several in random order, and equal states make equal files."""
LENGTH_BYTES = 8


def write_state(
    path: Path, value: Any, *, kind: str, classes: Sequence[type] | None = None, durable: bool = True
) -> None:
    """Write ``value`` to ``path`` in one step: a reader finds the old file or the new one, never a part.

    The directory is made where it is missing. A file and its copy as bytes are held in memory at once.

    Args:
        path: the file; an old one is replaced.
        value: a tree as :func:`hyperlora.storage.state_tree.pack` takes it.
        kind: what the value is, for example ``checkpoint``; :func:`read_state` must name the same.
        classes: where given, refuse at once what a reader with these classes could not restore.
        durable: wait until the file is on the disk (fsync); without, it survives the process but not a power cut.

    Raises:
        StateError: the value cannot be packed, or the file cannot be written (the old file is then still there).
    """
    try:
        tensors, description = pack(value, classes)
        replace_file(path, _encode(tensors, description, kind), durable)
    except OSError as error:
        raise StateError(f"the state file '{path}' cannot be written: {error.strerror or error}") from error
    except StateError as error:
        raise StateError(f"the state file '{path}' cannot be written: {error}") from error


def read_state(path: Path, classes: Sequence[type], *, kind: str) -> Any:
    """Return the value that :func:`write_state` wrote; its tensors are on the CPU.

    Raises:
        StateError: the file is missing, damaged, of another kind or of a newer version, or holds a class that is not
            among ``classes``.
    """
    try:
        return _decode(path.read_bytes(), classes, kind)
    except OSError as error:
        raise StateError(f"the state file '{path}' cannot be read: {error.strerror or error}") from error
    except StateError as error:
        raise StateError(f"the state file '{path}' cannot be used: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise StateError(f"the state file '{path}' cannot be used: it is damaged ({reason})") from error


def _encode(tensors: dict[str, Tensor], description: Any, kind: str) -> bytes:
    checksum = _checksum(tensors, description, kind)
    head = {"version": FORMAT_VERSION, "kind": kind, "sha256": checksum, "description": description}
    try:
        return save(tensors, {KEY: _json(head)})
    except Exception as error:
        raise StateError(f"it does not fit the format ({error})") from error


def _decode(content: bytes, classes: Sequence[type], kind: str) -> Any:
    head = _head(content)
    version = head["version"]
    if version != FORMAT_VERSION:
        raise StateError(f"it is of format version {version}, this program reads version {FORMAT_VERSION}")
    if head["kind"] != kind:
        raise StateError(f"it holds a '{head['kind']}', expected a '{kind}'")
    tensors, description = load(content), head["description"]
    if _checksum(tensors, description, kind) != head["sha256"]:
        raise StateError("it is damaged (its checksum does not match)")
    return unpack(tensors, description, classes)


def _head(content: bytes) -> dict[str, Any]:
    """Return the metadata; safetensors begins with the length of a JSON header, then the header."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
    head: dict[str, Any] = json.loads(header["__metadata__"][KEY])
    return head


def _checksum(tensors: Mapping[str, Tensor], description: Any, kind: str) -> str:
    names = sorted(tensors)
    shapes = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(_json([FORMAT_VERSION, kind, description, shapes]).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise StateError(f"it cannot be described in JSON ({error})") from error


def replace_file(path: Path, content: bytes, durable: bool) -> None:
    """Write ``content`` to ``path`` in one step, by way of a file beside it; ``durable`` as in :func:`write_state`.

    Raises:
        OSError: it cannot be written; the old file is then still there.
    """
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for directory in [path.parent, *([path.parent.parent] if new else [])] if durable else []:
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    """Make a renaming durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
