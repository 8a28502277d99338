"""Records as no honest side sends them: one to three edits at random, of kinds that Flower's wire lets through."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

NUMBERS = (0, -1, 1, 2**31, -(2**62), 2**62, 0.5, -0.0, 1e-300, 1e39, 1e308, float("nan"), float("inf"))
TEXTS = ("", "a", "client-1", "../../etc/x", ".", "\0", "é" * 300, "int8", "core", "{}", "\n", "A" * 10_000)
EXTREMES = (float("nan"), float("inf"), 3e38, 65504.0, -1.0, 0.0)
DTYPES = ("float32", "float16", "float64", "int8", "int64", "bool", "complex64", "O", "", "<f4", ">f4", "U3")
RECORDS = ("config", "metrics", "arrays", "gradient", "signature", "core", "base", "x")
SHAPES = ((), (0,), (1,), (-1,), (2**40,), (3, 7), (1, 1, 1, 1, 1, 1, 1))


def mutate(content: RecordDict, chance: random.Random) -> None:
    """Change ``content`` in place."""
    for _ in range(chance.randint(1, 3)):
        if not content:
            return
        chance.choice(EDITS)(content, chance)


def mutate_json(value: Any, chance: random.Random) -> None:
    """Change, drop or add one entry somewhere inside lists and objects, in place."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(value[key], dict | list) and chance.random() < 0.7:
        mutate_json(value[key], chance)
    elif chance.random() < 0.3:
        del value[key]
    else:
        value[key] = chance.choice([*NUMBERS, *TEXTS, None, True, [], {}, [1.0], {"format": 1}])


def _drop_record(content: RecordDict, chance: random.Random) -> None:
    del content[chance.choice(list(content))]


def _move_record(content: RecordDict, chance: random.Random) -> None:
    name = chance.choice(list(content))
    _put(content, chance.choice(RECORDS), content[name])


def _swap_kind(content: RecordDict, chance: random.Random) -> None:
    kinds = (ConfigRecord({"version": 1}), MetricRecord({"version": 1}), ArrayRecord({"x": Array(np.zeros(2))}))
    _put(content, chance.choice(list(content)), chance.choice(kinds))


def _put(content: RecordDict, name: str, record: Any) -> None:
    if name in content:
        del content[name]  # Flower warns of a record that is overwritten by one of another kind
    content[name] = record


def _edit_entry(content: RecordDict, chance: random.Random) -> None:
    record = content[chance.choice(list(content))]
    if isinstance(record, ArrayRecord):
        _edit_array(record, chance)
        return
    name, way = chance.choice([*record, "x"]), chance.randrange(4)
    if way == 0:
        record.pop(name, None)
    elif way == 1 and isinstance(record.get(name), list):
        record[name] = _longer_or_shorter(record[name], chance)
    else:
        record[name] = _number(chance) if isinstance(record, MetricRecord) else _value(chance)


def _longer_or_shorter(values: Any, chance: random.Random) -> Any:
    return values[:-1] if chance.random() < 0.5 else [*values, *values[:1]]


def _number(chance: random.Random) -> Any:
    one = chance.choice(NUMBERS)
    return one if chance.random() < 0.7 else [one] * chance.randint(0, 3)


def _value(chance: random.Random) -> Any:
    one: Any = chance.choice([*NUMBERS, *TEXTS, *TEXTS, b"", b"\xff" * 9, True, False])
    return one if chance.random() < 0.6 else [one] * chance.randint(0, 3)


def _edit_array(record: ArrayRecord, chance: random.Random) -> None:
    if not record:
        return
    name, way = chance.choice(list(record)), chance.randrange(8)
    array = record[name]
    parts = {"dtype": array.dtype, "shape": tuple(array.shape), "stype": array.stype, "data": array.data}
    if way == 0:
        del record[name]
    elif way == 1:
        record[chance.choice(["x", "head", "signature", f"{name}.scale", "client-0"])] = array
    elif way == 2:
        record[name] = _extreme(array, chance)
    else:
        key, new = _part(parts, chance)
        record[name] = Array(**{**parts, key: new})


def _extreme(array: Array, chance: random.Random) -> Array:
    try:
        values = array.numpy().copy()
        with np.errstate(over="ignore", invalid="ignore"):
            values.reshape(-1)[: chance.randint(1, 3)] = np.float64(chance.choice(EXTREMES)).astype(values.dtype)
        return Array(values)
    except Exception:
        return array  # an edit before this one made it unreadable


def _part(parts: dict[str, Any], chance: random.Random) -> tuple[str, Any]:
    key = chance.choice(["dtype", "shape", "stype", "data", "data", "data"])
    if key == "dtype":
        return key, chance.choice(DTYPES)
    if key == "shape":
        return key, chance.choice((*SHAPES, (*parts["shape"], 1), tuple(reversed(parts["shape"]))))
    return (key, chance.choice(TEXTS)) if key == "stype" else (key, _bytes(parts["data"], chance))


def _bytes(data: bytes, chance: random.Random) -> bytes:
    way = chance.randrange(5)
    if way == 0:
        return data[: chance.randrange(len(data) + 1)]
    if way == 1:
        return data + chance.randbytes(chance.randint(1, 40))
    if way == 2:
        return chance.randbytes(chance.randint(0, 200))
    if way == 3:
        return _saved(chance)
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 3) if damaged else 0):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def _saved(chance: random.Random) -> bytes:
    """Return what numpy saved of another array, or an archive of arrays."""
    buffer = io.BytesIO()
    if chance.random() < 0.3:
        np.savez(buffer, x=np.zeros(3))
        return buffer.getvalue()
    kinds = (np.int64, np.float64, np.complex64, np.bool_, "U3", ">f4", [("a", "f4"), ("b", "i8")])
    np.save(buffer, np.zeros(chance.choice([(), (2,), (3, 7)]), dtype=chance.choice(kinds)))
    return buffer.getvalue()


EDITS: tuple[Callable[[RecordDict, random.Random], None], ...] = (
    _drop_record,
    _move_record,
    _swap_kind,
    *[_edit_entry] * 7,
)
