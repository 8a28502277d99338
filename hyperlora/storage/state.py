"""One state, one file: torch's format behind a line with the kind, the version and a SHA-256 of all that follows.

With a signing key the line ends in a signature of what stands before it.

A state is made of dataclasses, tensors, mappings, lists, tuples, strings, numbers and None. In the file a dataclass is
a dict of its fields with its name under the key None, so the file holds nothing but built-in types and tensors, which
``torch.load(weights_only=True)`` reads without running code. Dataclasses are made again by their constructors, and only
those that the reader lists.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperlora.storage.files import StorageError, write_bytes
from hyperlora.storage.signing import SigningKey

MAGIC = "hyperlora-state"
MOST_WORDS = 5
"""Of the first line: magic, kind, version, checksum, signature."""
LONGEST_INT = 2000
"""Bits of a whole number that every unpickler reads."""


class StateError(StorageError):
    """A state cannot be saved or restored; the message is one sentence."""


def write_state(
    path: Path,
    value: Any,
    classes: Sequence[type],
    *,
    kind: str,
    version: int,
    durable: bool = True,
    key: SigningKey | None = None,
) -> None:
    """Write ``value`` to ``path`` in one step; the value and its copy as bytes are held in memory at once.

    Mappings come back as dict, tensors detached and on the CPU; tensors that share a whole storage still do.

    Args:
        path: the file; an old one is replaced.
        value: the state; its mappings have keys str or int.
        classes: the dataclasses it may contain, as :func:`read_state` will be given them.
        kind: one word for what the value is, for example ``checkpoint``.
        version: of its content.
        durable: wait until the file is on the disk (fsync).
        key: signs the file.

    Raises:
        StateError: a part of the value could not be restored, or the file cannot be written; the old file stays.
    """
    payload = BytesIO()
    try:
        torch.save(to_plain(value, classes), payload)
    except StateError as error:
        raise StateError(f"the state file '{path}' cannot be written: {error}") from error
    content = payload.getvalue()
    try:
        write_bytes(path, _header(kind, version, content, key) + content, durable=durable)
    except StorageError as error:
        raise StateError(f"the state file {error}") from error


def read_state(path: Path, classes: Sequence[type], *, kind: str, version: int, key: SigningKey | None = None) -> Any:
    """Return the value that :func:`write_state` wrote; only what ``key`` signed where one is given.

    Raises:
        StateError: the file is missing, damaged, of another kind or version, not signed by ``key``, or holds a class
            that is not listed.
    """
    try:
        return _decoded(path.read_bytes(), classes, kind, version, key)
    except OSError as error:
        raise StateError(f"the state file '{path}' cannot be read: {error.strerror or error}") from error
    except StateError as error:
        raise StateError(f"the state file '{path}' cannot be used: {error}") from error
    except Exception as error:
        reason = f"it is damaged ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        raise StateError(f"the state file '{path}' cannot be used: {reason}") from error


def _header(kind: str, version: int, payload: bytes, key: SigningKey | None = None) -> bytes:
    digest = hashlib.sha256(f"{kind} {version}\n".encode() + payload)
    words = f"{MAGIC} {kind} {version} {digest.hexdigest()}"
    return f"{words} {key.sign(words.encode())}\n".encode() if key else f"{words}\n".encode()


def _decoded(content: bytes, classes: Sequence[type], kind: str, version: int, key: SigningKey | None) -> Any:
    header, _, payload = content.partition(b"\n")
    words = header.decode().split(" ")
    magic, found_kind, found_version, _ = words[:4]
    if magic != MAGIC:
        raise StateError("it is no state file")
    if found_kind != kind:
        raise StateError(f"it holds a '{found_kind}', expected a '{kind}'")
    if found_version != str(version):
        raise StateError(f"it is of version {found_version}, this program reads version {version}")
    unsigned = _header(kind, version, payload)[:-1]
    if " ".join(words[:4]).encode() != unsigned or len(words) > MOST_WORDS:
        raise StateError("it is damaged (its checksum does not match)")
    if key:
        _require_signed(unsigned, words[4:], key)
    with zipfile.ZipFile(BytesIO(payload)) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise StateError("it is damaged (a part is compressed)")
    loaded = torch.load(BytesIO(payload), map_location="cpu", weights_only=True)
    return from_plain(loaded, classes, most_parts=len(payload))


def to_plain(value: Any, classes: Sequence[type]) -> Any:
    """Return a state in built-in types and dense tensors on the CPU; a dataclass has its name under the key None.

    Raises:
        StateError: a part could not be restored, or the value is nested too deeply.
    """
    try:
        return _plain(value, frozenset(classes), "state")
    except RecursionError as error:
        raise StateError("the state is nested too deeply, or contains itself") from error


def from_plain(value: Any, classes: Sequence[type], *, most_parts: int) -> Any:
    """Inverse of :func:`to_plain`; dicts of ``value`` lose the key None.

    Args:
        value: built-in types and tensors.
        classes: the dataclasses that may be made.
        most_parts: how many parts there can be by the size of the file.

    Raises:
        StateError: the value is none that a state is written as, or names a class that is not listed.
    """
    return _Builder({cls.__name__: cls for cls in classes}, most_parts).build(value)


def _require_signed(header: bytes, signature: Sequence[str], key: SigningKey) -> None:
    if not signature:
        raise StateError("it is not signed, and run.signing-key asks for files that are")
    if not key.has_signed(header, signature[0]):
        raise StateError("its signature is not that of the key in run.signing-key")


def _plain(value: Any, classes: frozenset[type], where: str) -> Any:
    """Return ``value`` in built-in types; ``where`` is the path of a part, for error messages."""
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int and value.bit_length() <= LONGEST_INT:
        return value
    if isinstance(value, Tensor):
        return _dense(value, where)
    if type(value) in (list, tuple):
        return type(value)(_plain(part, classes, f"{where}[{index}]") for index, part in enumerate(value))
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(part, classes, f"{where}[{key!r}]") for key, part in value.items()}
    if type(value) not in classes:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise StateError(f"{where} is a {kind}, which is not among the classes that can be restored")
    parts = {part.name: getattr(value, part.name) for part in fields(value)}
    return {None: type(value).__name__} | {
        name: _plain(part, classes, f"{where}.{name}") for name, part in parts.items()
    }


def _key(key: Any, where: str) -> str | int:
    if type(key) not in (str, int):
        raise StateError(f"{where} has the key {key!r}, expected a string or a whole number")
    return key  # type: ignore[no-any-return]


def _dense(tensor: Tensor, where: str) -> Tensor:
    """Return the tensor on the CPU, with a storage that holds nothing else."""
    if tensor.layout != torch.strided or tensor.is_meta:
        raise StateError(f"{where} is a tensor of {tensor.layout} on {tensor.device}, which cannot be saved")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.untyped_storage().nbytes() != plain.nbytes:
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain


@dataclass
class _Builder:
    """Makes a state from what a file holds.

    Attributes:
        classes: the dataclasses that may be made, by name.
        parts_left: how many parts the file can hold by its size; one that refers to itself would have more.
    """

    classes: Mapping[str, type]
    parts_left: int

    def build(self, value: Any) -> Any:
        self.parts_left -= 1
        if self.parts_left < 0:
            raise StateError("it is damaged (it holds more parts than bytes)")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is Tensor:
            return self._checked(value)
        if type(value) in (list, tuple):
            return type(value)(self.build(part) for part in value)
        if type(value) is not dict:
            raise StateError(f"it holds a {type(value).__name__}, which no state does")
        name = value.pop(None, None)
        parts = {_key(key, "the file"): self.build(part) for key, part in value.items()}
        return parts if name is None else self._made(name, parts)

    def _checked(self, tensor: Tensor) -> Tensor:
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
        if not dense or tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.requires_grad:
            raise StateError("it holds a tensor that is not dense")
        return tensor

    def _made(self, name: Any, parts: Mapping[Any, Any]) -> Any:
        cls = self.classes.get(name)
        if cls is None:
            raise StateError(f"the class {name} is not among those that can be restored: {sorted(self.classes)}")
        known = {part.name for part in fields(cls)}
        if not {part.name for part in fields(cls) if _needed(part)} <= set(parts) <= known:
            raise StateError(f"{name} has the fields {sorted(known)}, saved are {sorted(map(str, parts))}")
        try:
            return cls(**parts)
        except Exception as error:
            raise StateError(f"{name} cannot be made from what was saved: {error}") from error


def _needed(part: Field[Any]) -> bool:
    """Tell whether a field has no default, by which a file from before there was such a field is read."""
    return part.default is MISSING and part.default_factory is MISSING
