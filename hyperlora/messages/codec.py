"""Tensors as Flower records, and back with every expectation checked; a ConfigRecord carries the protocol's version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from hyperlora.config.settings import WIRE_DTYPES
from hyperlora.messages.number_formats import Shapes, pack, packed_shapes, unpack

MOST_MEASURED = 1e9
MOST_STEPS = 10**6
"""Local steps that a client makes for one message."""
LARGEST = 65504.0
"""The largest number of float16, the narrowest float on the wire."""
Scalar = TypeVar("Scalar", int, float, str, bool, bytes)


class ProtocolError(ValueError):
    """A message is not what the protocol says; the message is one sentence."""


MOST_TEXT = 200


def printable(text: str, most: int = MOST_TEXT) -> str:
    """Return at most ``most`` characters of a text from the other side, all on one line and none that steers a screen.

    Such a text ends in logs, tables and pages, where it must not look like a line of somebody else's.
    """
    shown = text if len(text) <= most else f"{text[: most - 3]}..."
    return "".join(letter if letter.isprintable() else " " for letter in shown)


MOST_COUNTED = 2.0**24
"""Samples or tokens that a reply may count: float32 tells whole numbers up to there."""


def encode_tensors(tensors: Mapping[str, Tensor], dtype: np.typing.DTypeLike) -> ArrayRecord:
    """Return an ArrayRecord with every tensor as ``dtype`` under its name."""
    arrays = {name: Array(tensor.detach().cpu().numpy().astype(dtype)) for name, tensor in tensors.items()}
    return ArrayRecord(arrays)


def decode_tensors(
    record: ArrayRecord, expected: Shapes, largest: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Return the tensors of ``record`` as float32, exactly those of ``expected`` (name -> shape).

    Args:
        record: as it came.
        expected: name -> shape.
        largest: name -> largest size of a number, of those that may be larger than ``LARGEST``.

    Raises:
        ProtocolError: a name is missing or unknown, a shape or dtype differs, or a number is not finite or too large.
    """
    if set(record) != set(expected):
        names = sorted(set(record) ^ set(expected))
        raise ProtocolError(f"arrays do not match: missing or unknown {', '.join(names[:4])}")
    bounds = largest or {}
    return {
        name: _decode_tensor(name, record[name], shape, bounds.get(name, LARGEST)) for name, shape in expected.items()
    }


def _decode_tensor(name: str, array: Array, shape: tuple[int, ...], largest: float) -> Tensor:
    if tuple(array.shape) != shape or array.dtype not in ("float32", "float16"):
        raise ProtocolError(f"array '{name}': expected float {shape}, got {array.dtype} {tuple(array.shape)}")
    values = torch.from_numpy(read_array(name, array).astype(np.float32))
    require_moderate({name: values}, largest)
    return values


def read_array(name: str, array: Array) -> np.typing.NDArray[Any]:
    """Return the finite numbers of an array, of the shape and dtype that it declares; raises ProtocolError."""
    try:
        values = array.numpy()
    except Exception as error:
        raise ProtocolError(f"array '{name}' cannot be read: {error}") from error
    if not isinstance(values, np.ndarray):  # numpy reads an archive of arrays too
        raise ProtocolError(f"array '{name}' holds other data than one array")
    if values.shape != tuple(array.shape) or str(values.dtype) != array.dtype or not np.isfinite(values).all():
        raise ProtocolError(f"array '{name}' holds NaN, infinity or other data than it declares")
    return values


def encode_packed(
    tensors: Mapping[str, Tensor], wire: str = "float32", chance: torch.Generator | None = None
) -> ArrayRecord:
    """Return ``tensors`` as arrays of dtype ``wire``, rounded at random where there is ``chance``."""
    packed = pack({name: tensor.detach().cpu() for name, tensor in tensors.items()}, wire, chance)
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in packed.items()})


def decode_packed(record: ArrayRecord, shapes: Shapes, wire: str = "float32") -> dict[str, Tensor]:
    """Inverse of :func:`encode_packed`; raises :class:`ProtocolError` where a part is not as both say."""
    expected = packed_shapes(shapes, wire)
    if set(record) != set(expected):
        names = sorted(set(record) ^ set(expected))
        raise ProtocolError(f"arrays do not match: missing or unknown {', '.join(names[:4])}")
    packed = {}
    for name, (shape, dtype) in expected.items():
        array = record[name]
        if tuple(array.shape) != shape or array.dtype != dtype:
            raise ProtocolError(f"array '{name}': expected {dtype} {shape}, got {array.dtype} {tuple(array.shape)}")
        packed[name] = torch.from_numpy(read_array(name, array).copy())
    values = unpack(packed, wire, shapes)
    require_moderate(values)
    return values


def require_moderate(tensors: Mapping[str, Tensor], largest: float = LARGEST) -> None:
    """Raise :class:`ProtocolError` for numbers beyond ``largest``: products of larger ones would overflow float32."""
    for name, tensor in tensors.items():
        if not bool((tensor.abs() <= largest).all()):
            raise ProtocolError(f"array '{name}' holds numbers beyond {largest:g}, which no honest reply has")


def require(record: Mapping[str, object], name: str, kind: type[Scalar]) -> Scalar:
    """Return entry ``name`` of a config or metric record, of exactly the type ``kind``.

    Raises:
        ProtocolError: it is missing, of another type, or not finite.
    """
    value = record.get(name)
    if type(value) is not kind:
        raise ProtocolError(f"entry '{name}': expected {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not np.isfinite(value):
        raise ProtocolError(f"entry '{name}' must be finite, got {value}")
    return value


def require_list(
    record: Mapping[str, object], name: str, kind: type[Scalar], length: int | None = None
) -> list[Scalar]:
    """Return list ``name``, every entry of type ``kind`` (and ``length`` of them); raises :class:`ProtocolError`."""
    value = record.get(name)
    if not isinstance(value, list) or any(type(one) is not kind for one in value):
        raise ProtocolError(f"entry '{name}': expected a list of {kind.__name__}, got {value!r}")
    if length is not None and len(value) != length:
        raise ProtocolError(f"entry '{name}': expected {length} values, got {len(value)}")
    if kind is float and not np.isfinite(value).all():
        raise ProtocolError(f"entry '{name}' must be finite, got {value!r}")
    return value


def require_measured(values: Sequence[float]) -> None:
    """Raise :class:`ProtocolError` unless all are losses or seconds that can be averaged: 0 to ``MOST_MEASURED``."""
    if any(not 0 <= value <= MOST_MEASURED for value in values):
        raise ProtocolError(f"losses and seconds {[*values]} must lie between 0 and {MOST_MEASURED:g}")


def require_steps(steps: Sequence[int]) -> None:
    """Raise :class:`ProtocolError` unless all are numbers of local steps that a client makes: 0 to ``MOST_STEPS``."""
    if any(not 0 <= one <= MOST_STEPS for one in steps):
        raise ProtocolError(f"numbers of local steps {[*steps]} must lie between 0 and {MOST_STEPS}")


def config_of(content: RecordDict) -> ConfigRecord:
    """Return the message's ConfigRecord or raise :class:`ProtocolError`."""
    return _record(content, "config", ConfigRecord)


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return the message's MetricRecord or raise :class:`ProtocolError`."""
    return _record(content, "metrics", MetricRecord)


def arrays_of(content: RecordDict, name: str = "arrays") -> ArrayRecord:
    """Return the message's ArrayRecord ``name`` or raise :class:`ProtocolError`."""
    return _record(content, name, ArrayRecord)


Record = TypeVar("Record", ConfigRecord, MetricRecord, ArrayRecord)


def _record(content: RecordDict, name: str, kind: type[Record]) -> Record:
    record = content.get(name)
    if not isinstance(record, kind):
        raise ProtocolError(f"the message holds no {kind.__name__} '{name}'")
    return record


def count_bytes(content: RecordDict) -> int:
    """Return the bytes of all records of a message's content."""
    return sum(_bytes_of(record) for record in content.values())


def _bytes_of(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Return the bytes of a record, as Flower counts them; its own count raises for an empty list or an empty text."""
    if not isinstance(record, ConfigRecord):
        return record.count_bytes()
    values = {name: value if isinstance(value, list) else [value] for name, value in record.items()}
    return sum(len(name) + sum(map(_size, value)) for name, value in values.items())


def _size(value: str | bytes | float) -> int:
    return len(value) if isinstance(value, str | bytes) else 1 if isinstance(value, bool) else 8


def content_digest(content: RecordDict) -> str:
    """Return the SHA-256 over all records of a message's content, the same at the sender and at the recipient."""
    digest = hashlib.sha256()
    for name, record in sorted(content.items()):
        digest.update(f"{type(record).__name__} {name}\n".encode("utf-8", "surrogatepass"))
        for key, value in sorted(record.items()):
            if isinstance(value, Array):
                said = f"{key} {value.dtype} {tuple(value.shape)} {len(value.data)}\n"
                digest.update(said.encode("utf-8", "surrogatepass"))
                digest.update(value.data)
            else:
                digest.update(f"{key} {value!r}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


PROTOCOL_VERSION = 6


def config_record(**entries: Any) -> ConfigRecord:
    """Return a ConfigRecord with ``entries`` and the version."""
    return ConfigRecord({"version": PROTOCOL_VERSION, **entries})


def checked_config(content: RecordDict) -> ConfigRecord:
    """Return the message's ConfigRecord; raises ProtocolError for another version."""
    config = config_of(content)
    version = require(config, "version", int)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"the message has protocol version {version}, this side speaks {PROTOCOL_VERSION}")
    return config


def require_wire(config: ConfigRecord) -> str:
    """Return how the message's adapters travel; raises ProtocolError for a format that this side does not know."""
    wire = require(config, "wire", str)
    if wire not in WIRE_DTYPES:
        raise ProtocolError(f"adapters travel as '{wire}', this side reads {', '.join(WIRE_DTYPES)}")
    return wire
