"""What a section of settings is: typed keys with a default, a range and a meaning, and errors of one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from annotated_types import Predicate
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from hyperlora.config.schema import RunConfig

Scalar = bool | int | float | str
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
TYPE_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
BOUNDS = {"ge": "at least {}", "gt": "greater than {}", "lt": "below {}", "le": "at most {}"}


class ConfigError(ValueError):
    """A key or value of the run configuration is wrong; the message is one sentence for a person."""


@dataclass(frozen=True)
class Rule(Predicate):
    """A check of a value that pydantic has no constraint for, to stand in ``Annotated``; ``text`` follows "must be"."""

    text: str


def names_out_of(names: Sequence[str], instead: str = "") -> Rule:
    """Return the rule that a text is some of ``names`` separated by commas, or the word ``instead``."""
    listed = f"names out of {', '.join(names[:-1])} and {names[-1]}, separated by commas"
    return Rule(
        lambda value: value == instead or all(part in names for part in value.split(",") if part),
        f"{instead}, or {listed}" if instead else listed,
    )


StepList = Annotated[
    str,
    Rule(
        lambda value: all(part.strip().isdecimal() for part in value.split(",") if value), "numbers separated by commas"
    ),
]


class Section(BaseModel):
    """A group of settings that share the first part of their key, as ``lora`` in ``lora.rank``.

    A method declares its settings as subclasses with a ``prefix``, listed as ``SECTIONS`` in its ``config.py``.
    Values are strict: only an integer may stand for another type, a number.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    prefix: ClassVar[str] = ""

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError where the section contradicts itself or the rest of a run."""


S = TypeVar("S", bound=Section)


def key(default: Scalar, meaning: str) -> Any:
    """Declare a key of a section: its default and its meaning with the unit; its range is in its type."""
    return Field(default, description=meaning)


@dataclass(frozen=True)
class ConfigKey:
    """One entry of the configuration reference; ``range`` is empty where every value of the type is allowed."""

    key: str
    field: str
    type: type
    default: Any
    meaning: str
    range: str


@lru_cache(maxsize=64)
def keys_of(section: type[Section], prefix: str = "") -> tuple[ConfigKey, ...]:
    """Return the keys of a section in the order of their declaration; a ``prefix`` ends in a dot."""
    fields = section.model_fields.items()
    return tuple(_config_key(name, prefix, field) for name, field in fields if field.description)


def _config_key(name: str, prefix: str, field: FieldInfo) -> ConfigKey:
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    kind: Any = type(names[0]) if names else field.annotation
    allowed = one_of(names) if names else _range(field.metadata)
    return ConfigKey(prefix + name.replace("_", "-"), name, kind, field.default, field.description or "", allowed)


def one_of(names: Iterable[str]) -> str:
    """Return the range of a key that takes one of ``names``."""
    return "one of " + ", ".join(f"'{name}'" for name in names)


def _range(rules: Sequence[Any]) -> str:
    texts = [text.format(getattr(rule, name)) for rule in rules for name, text in BOUNDS.items() if hasattr(rule, name)]
    texts += [rule.text for rule in rules if isinstance(rule, Rule)]
    return "0 or more" if texts == ["at least 0"] else " and ".join(texts)


def values_of(section: Section, prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield every key of a section with its value."""
    return ((entry.key, getattr(section, entry.field)) for entry in keys_of(type(section), prefix))


def parse_section(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Return the section with those of the flat ``values`` that are its keys; others keep their default.

    Raises:
        ConfigError: a value has another type or is outside its range.
    """
    entries = {entry.field: entry for entry in keys_of(section, prefix)}
    given = {name: values[entry.key] for name, entry in entries.items() if entry.key in values}
    try:
        return section.model_validate(given)
    except ValidationError as error:
        first: Any = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        raise (cause if isinstance(cause, ConfigError) else _error(entries[first["loc"][0]], first)) from None


def _error(entry: ConfigKey, error: Any) -> ConfigError:
    value = float(error["input"]) if entry.type is float and type(error["input"]) is int else error["input"]
    wanted = f"must be {entry.range or error['msg']}, got {value!r}"
    if type(value) is not entry.type:
        wanted = f"takes {TYPE_NAMES[entry.type]}, got {value!r} ({type(value).__name__})"
    return ConfigError(f"configuration key '{entry.key}' {wanted}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the known key most like ``name``, if any is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
