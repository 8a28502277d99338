"""How a configuration of nested frozen dataclasses is declared, read from flat keys, checked and written back."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

Scalar = bool | int | float | str
Check = tuple[Callable[[Any], bool], str]

AT_LEAST_ONE: Check = (lambda value: value >= 1, "at least 1")
NOT_NEGATIVE: Check = (lambda value: value >= 0, "0 or more")
POSITIVE: Check = (lambda value: value > 0, "greater than 0")
BELOW_ONE: Check = (lambda value: 0 <= value < 1, "at least 0 and below 1")


class ConfigError(ValueError):
    """A key or value of the run configuration is wrong; the message is one sentence for a person."""


def one_of(*names: str) -> Check:
    """Return the check that a value is one of ``names``."""
    return (lambda value: value in names, "one of " + ", ".join(f"'{name}'" for name in names))


def key(default: Scalar, meaning: str, check: Check | None = None) -> Any:
    """Declare one configuration key with its default, meaning (with unit) and range."""
    return field(default=default, metadata={"meaning": meaning, "check": check})


@dataclass(frozen=True)
class ConfigKey:
    """One entry of the configuration reference."""

    key: str
    type: type
    default: Any
    meaning: str
    check: Check | None


def keys_of(cls: type, prefix: str = "") -> Iterator[ConfigKey]:
    """Yield every key of a configuration class in the order of its declaration."""
    hints = get_type_hints(cls)
    for entry in fields(cls):
        name = prefix + entry.name.replace("_", "-")
        if is_dataclass(hints[entry.name]):
            yield from keys_of(hints[entry.name], prefix=name + ".")
        else:
            meta = entry.metadata
            yield ConfigKey(name, hints[entry.name], entry.default, meta["meaning"], meta["check"])


def checked(entry: ConfigKey, value: Scalar) -> Scalar:
    """Return ``value`` at the type of its key (an integer may stand for a number); raises ConfigError."""
    if entry.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not entry.type:
        raise ConfigError(
            f"configuration key '{entry.key}' takes {_article(entry.type)}, got {value!r} ({type(value).__name__})"
        )
    if entry.check and not entry.check[0](value):
        raise ConfigError(f"configuration key '{entry.key}' must be {entry.check[1]}, got {value!r}")
    return value


def _article(kind: type) -> str:
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[kind]


def build(cls: type, values: Mapping[str, Scalar], prefix: str = "") -> Any:
    """Return a ``cls`` with the flat ``values``; keys that are absent keep their default."""
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for entry in fields(cls):
        name = prefix + entry.name.replace("_", "-")
        if is_dataclass(hints[entry.name]):
            arguments[entry.name] = build(hints[entry.name], values, prefix=name + ".")
        elif name in values:
            arguments[entry.name] = values[name]
    return cls(**arguments)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield every key of a configuration with its value."""
    for entry in fields(config):
        name, value = prefix + entry.name.replace("_", "-"), getattr(config, entry.name)
        if is_dataclass(value):
            yield from flatten(value, prefix=name + ".")
        else:
            yield name, value


def nearest(name: str, known: Mapping[str, ConfigKey]) -> str:
    """Return the end of a sentence that names the known key most like ``name``, if any is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
