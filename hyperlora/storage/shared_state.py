"""A state for others to read: its tensors in safetensors, all else as JSON in the metadata of the same file.

What a state may be made of, and which dataclasses are made again, is as in :mod:`hyperlora.storage.state`; nothing
here reads pickle. A node of the JSON is null, a truth value, a number, a string, or one of ``{"list": [...]}``,
``{"tuple": [...]}``, ``{"map": [[key, node], ...]}`` and ``{"tensor": name}``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from hyperlora.storage.files import write_bytes
from hyperlora.storage.state import MAGIC, StateError, from_plain, to_plain


def write_shared_state(path: Path, value: Any, classes: Sequence[type], *, kind: str, version: int) -> None:
    """Write ``value`` to ``path`` in one step.

    Args:
        path: the file, which ends in ``.safetensors``; an old one is replaced.
        value: the state.
        classes: the dataclasses it may contain.
        kind: one word for what the value is.
        version: of its content.

    Raises:
        StateError: a part of the value could not be restored.
        StorageError: the file cannot be written.
    """
    tensors = _Tensors()
    try:
        text = json.dumps(_as_json(to_plain(value, classes), tensors))
    except StateError as error:
        raise StateError(f"the state file '{path}' cannot be written: {error}") from error
    digest = _digest(kind, str(version), text, tensors.by_name)
    about = {"format": MAGIC, "kind": kind, "version": str(version), "sha256": digest, "state": text}
    write_bytes(path, save(tensors.by_name, about))


def read_shared_state(path: Path, classes: Sequence[type], *, kind: str, version: int) -> Any:
    """Return the value that :func:`write_shared_state` wrote.

    Raises:
        StateError: the file is missing, damaged, of another kind or version, or holds a class that is not listed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = file.keys()
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name).clone() for name in names}
        return _decoded(about, tensors, classes, kind, str(version))
    except OSError as error:
        raise StateError(f"the state file '{path}' cannot be read: {error.strerror or error}") from error
    except StateError as error:
        raise StateError(f"the state file '{path}' cannot be used: {error}") from error
    except Exception as error:  # safetensors raises its own error, a damaged text half a dozen others
        reason = f"it is damaged ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        raise StateError(f"the state file '{path}' cannot be used: {reason}") from error


def _decoded(
    about: Mapping[str, str], tensors: Mapping[str, Tensor], classes: Sequence[type], kind: str, version: str
) -> Any:
    if about.get("format") != MAGIC:
        raise StateError("it is no state file")
    if (about["kind"], about["version"]) != (kind, version):
        found = f"a '{about['kind']}' of version {about['version']}"
        raise StateError(f"it holds {found}, this program reads a '{kind}' of version {version}")
    text = about["state"]
    if _digest(kind, version, text, tensors) != about["sha256"]:
        raise StateError("it is damaged (its checksum does not match)")
    return from_plain(_from_json(json.loads(text), tensors), classes, most_parts=len(text))


def _digest(kind: str, version: str, text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{kind} {version}\n{text}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Tensors:
    """The tensors of a state by name; one that occurs twice is held once."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._names: dict[tuple[int, torch.dtype, torch.Size], str] = {}

    def name(self, tensor: Tensor) -> str:
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape)
        if place not in self._names:
            self._names[place] = str(len(self._names))
            self.by_name[self._names[place]] = tensor.clone()
        return self._names[place]


def _as_json(value: Any, tensors: _Tensors) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": tensors.name(value)}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_as_json(part, tensors) for part in value]}
    if isinstance(value, dict):
        return {"map": [[key, _as_json(part, tensors)] for key, part in value.items()]}
    return value


def _from_json(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: _from_json(part, tensors) for key, part in content}
    return {"list": list, "tuple": tuple}[kind](_from_json(part, tensors) for part in content)
