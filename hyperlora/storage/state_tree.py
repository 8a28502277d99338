"""A method's state as named tensors and a JSON-able description, and back.

A description is JSON: null, true, false, whole and finite numbers, strings and lists stand for themselves. Anything
else is an object with one key, its tag: ``{"float": "nan"}``, ``{"tensor": name}``, ``{"tuple": [...]}``,
``{"dict": [[key, value], ...]}`` (keys are strings or whole numbers) or ``{"object": [class name, {field: value}]}``.
Nothing is imported or looked up by name: a dataclass is rebuilt only where the reader lists it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

NOT_FINITE = ("nan", "inf", "-inf")
DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8}
    | {torch.bool, torch.complex64}
)
"""The dtypes that safetensors keeps."""


class StateError(ValueError):
    """A state cannot be saved or restored; the message is one sentence."""


def pack(value: Any, classes: Sequence[type] | None = None) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of a tree by name, and its description.

    A tree is made of dataclasses, mappings with keys str or int (they come back as dict), lists, tuples, tensors,
    None, bool, int, float and str. Subclasses of the built-in types are refused, since they would come back as another
    type. The tensors are detached, on the CPU, contiguous and share no storage among each other, but they may share the
    tree's: write them before it changes.

    Args:
        value: the tree.
        classes: where given, the dataclasses that the reader will accept; any other is refused now.

    Raises:
        StateError: a part is of another kind, or the tree contains itself.
    """
    packer = _Packer(None if classes is None else _by_name(classes))
    try:
        return packer.tensors, packer.describe(value, "state")
    except RecursionError as error:
        raise StateError("the state is nested too deeply, or contains itself") from error


def unpack(tensors: Mapping[str, Tensor], description: Any, classes: Sequence[type]) -> Any:
    """Inverse of :func:`pack`; the tensors are used as they are, not copied.

    Args:
        tensors: what :func:`pack` returned, by name.
        description: what :func:`pack` returned, or its copy through JSON.
        classes: the dataclasses that may be made, known by their name.

    Raises:
        StateError: a class is unknown or refuses its fields, a field or a tensor is missing or unknown, or the
            description is not one of :func:`pack`'s.
    """
    builder = _Builder(tensors, _by_name(classes))
    try:
        return builder.build(description)
    except StateError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise StateError(f"the description of the state is malformed ({type(error).__name__}: {error})") from error


def _by_name(classes: Sequence[type]) -> dict[str, type]:
    named = {cls.__name__: cls for cls in classes}
    if len(named) != len(set(classes)):
        raise StateError(f"two of the classes {sorted(cls.__name__ for cls in classes)} have one name")
    return named


@dataclass
class _Packer:
    """Collects tensors on the way through a tree; ``where`` is the path of a part, for error messages."""

    classes: Mapping[str, type] | None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _storages: set[int] = field(default_factory=set)

    def describe(self, value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int):
            return value
        if type(value) is str:
            return _text(value, where)
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor):
            return {"tensor": self._keep(value, where)}
        if type(value) in (list, tuple):
            parts = [self.describe(part, f"{where}[{index}]") for index, part in enumerate(value)]
            return parts if type(value) is list else {"tuple": parts}
        return self._describe_named(value, where)

    def _describe_named(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {
                "dict": [[_key(key, where), self.describe(part, f"{where}[{key!r}]")] for key, part in value.items()]
            }
        if not is_dataclass(value) or isinstance(value, type):
            raise StateError(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved")
        name = type(value).__name__
        if self.classes is not None and self.classes.get(name) is not type(value):
            raise StateError(f"{where} is a {name}, which is not among the classes that can be restored")
        parts = {part.name: self.describe(getattr(value, part.name), f"{where}.{part.name}") for part in fields(value)}
        return {"object": [name, parts]}

    def _keep(self, tensor: Tensor, where: str) -> str:
        """Enter a tensor that is contiguous and shares no storage with those before; names are numbers."""
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            raise StateError(f"{where} is a tensor of {tensor.dtype}, {tensor.layout}, which cannot be saved")
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if plain.untyped_storage().data_ptr() in self._storages:
            plain = plain.clone()
        self._storages.add(plain.untyped_storage().data_ptr())
        name = str(len(self.tensors))
        self.tensors[name] = plain
        return name


@dataclass(frozen=True)
class _Builder:
    """Rebuilds a tree from its description."""

    tensors: Mapping[str, Tensor]
    classes: Mapping[str, type]

    def build(self, description: Any) -> Any:
        if description is None or type(description) in (bool, int, float, str):
            return description
        if type(description) is list:
            return [self.build(part) for part in description]
        ((tag, content),) = description.items()
        match tag:
            case "tensor":
                return self._tensor(content)
            case "tuple":
                return tuple(self.build(part) for part in content)
            case "dict":
                return {key: self.build(part) for key, part in content}
            case "float" if content in NOT_FINITE:
                return float(content)
            case "object":
                return self._object(*content)
        raise StateError(f"the description of the state has an unknown part '{tag}'")

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise StateError(f"the tensor '{name}' is missing")
        return self.tensors[name]

    def _object(self, name: str, described: Mapping[str, Any]) -> Any:
        cls = self.classes.get(name)
        if cls is None:
            raise StateError(f"the class {name} is not among those that can be restored: {sorted(self.classes)}")
        given, known = set(described), {part.name for part in fields(cls)}
        if given != known:
            raise StateError(f"{name} has the fields {sorted(known)}, saved are {sorted(given)}")
        values = {part: self.build(content) for part, content in described.items()}
        computed = {part.name for part in fields(cls) if not part.init}
        try:
            made = cls(**{part: value for part, value in values.items() if part not in computed})
            for part in computed:
                object.__setattr__(made, part, values[part])
        except Exception as error:
            raise StateError(f"{name} cannot be made from what was saved: {error}") from error
        return made


def _key(key: Any, where: str) -> str | int:
    if type(key) is int:
        return key
    if type(key) is str:
        return _text(key, where)
    raise StateError(f"{where} has the key {key!r}, expected a string or a whole number")


def _text(text: str, where: str) -> str:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise StateError(f"{where} has a string with half a surrogate pair, {text!r}, which JSON does not keep")
    return text
