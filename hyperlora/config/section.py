"""What a section of settings is: typed keys with a default, a range and a meaning, and errors of one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from hyperlora.config.schema import RunConfig

Scalar = bool | int | float | str
Fraction = Annotated[float, Field(ge=0, lt=1)]
TYPE_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


class ConfigError(ValueError):
    """A key or value of the run configuration is wrong; the message is one sentence for a person."""


@dataclass(frozen=True)
class Rule:
    """A check of a field's value that pydantic has no constraint for, to stand in ``Annotated``.

    Args:
        holds: whether a value is allowed.
        text: what is allowed, to follow "must be".
    """

    holds: Callable[[Any], bool]
    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Add the check to the schema of the type."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        if not self.holds(value):
            raise ValueError(self.text)
        return value


def names_out_of(names: Sequence[str], instead: str = "") -> Rule:
    """Return the rule that a text is some of ``names`` separated by commas, or the word ``instead``."""
    listed = f"names out of {', '.join(names[:-1])} and {names[-1]}, separated by commas"
    return Rule(
        lambda value: value == instead or all(part in names for part in value.split(",") if part),
        f"{instead}, or {listed}" if instead else listed,
    )


class Section(BaseModel):
    """A group of settings that share the first part of their key, as ``lora`` in ``lora.rank``.

    A method declares its settings as subclasses with a ``prefix``, listed as ``SECTIONS`` in its ``config.py``.
    Values are strict: only an integer may stand for another type, a number.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    prefix: ClassVar[str] = ""

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError where the section contradicts itself or the rest of a run."""


def key(default: Scalar, meaning: str) -> Any:
    """Declare a key of a section: its default and its meaning with the unit; its range is in its type."""
    return Field(default, description=meaning)


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class ConfigKey:
    """One entry of the configuration reference; ``range`` is empty where every value of the type is allowed."""

    key: str
    type: type
    default: Any
    meaning: str
    range: str


@lru_cache(maxsize=64)
def keys_of(section: type[Section], prefix: str = "") -> tuple[ConfigKey, ...]:
    """Return the keys of a section in the order of their declaration; a ``prefix`` ends in a dot."""
    fields = section.model_fields.items()
    return tuple(_config_key(key_of(name, prefix), field) for name, field in fields if field.description)


def _config_key(key: str, field: FieldInfo) -> ConfigKey:
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    kind: Any = type(names[0]) if names else field.annotation
    allowed = one_of(names) if names else _range(field.metadata, kind)
    return ConfigKey(key, kind, field.default, field.description or "", allowed)


def key_of(field: str, prefix: str = "") -> str:
    """Return the key of a field: names of fields have underscores, keys have dashes."""
    return prefix + field.replace("_", "-")


def values_of(section: Section, prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield every key of a section with its value."""
    for entry in keys_of(type(section)):
        yield prefix + entry.key, getattr(section, entry.key.replace("-", "_"))


def parse_section(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Return the section with those of the flat ``values`` that are its keys; others keep their default.

    Raises:
        ConfigError: a value has another type or is outside its range.
    """
    entries = {entry.key: entry for entry in keys_of(section, prefix)}
    fields = {key[len(prefix) :].replace("-", "_"): values[key] for key in entries if key in values}
    try:
        return section.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(_sentence(entries[key_of(str(first["loc"][0]), prefix)], first)) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the known key most like ``name``, if any is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_of(names: Iterable[str]) -> str:
    """Return the range of a key that takes one of ``names``."""
    return "one of " + ", ".join(f"'{name}'" for name in names)


def _sentence(entry: ConfigKey, error: Any) -> str:
    value = error["input"]
    if entry.type is float and type(value) is int:
        value = float(value)
    if type(value) is not entry.type:
        return f"configuration key '{entry.key}' takes {TYPE_NAMES[entry.type]}, got {value!r} ({type(value).__name__})"
    return f"configuration key '{entry.key}' must be {entry.range or error['msg']}, got {value!r}"


def _range(constraints: Iterable[Any], kind: type) -> str:
    texts = [text for constraint in constraints if (text := _constraint(constraint, kind))]
    return "0 or more" if texts == ["at least 0"] else " and ".join(texts)


def _constraint(constraint: Any, kind: type) -> str:
    match constraint:
        case Rule(text=text):
            return text
        case Ge(ge=bound):
            return f"at least {bound}"
        case Gt(gt=int(bound)) if kind is int:
            return f"at least {bound + 1}"
        case Gt(gt=bound):
            return f"greater than {bound}"
        case Lt(lt=bound):
            return f"below {bound}"
    return ""
