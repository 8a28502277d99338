"""The reference of every configuration key as Markdown; ``python -m hyperlora.config.reference`` prints it."""

from __future__ import annotations

from itertools import groupby

from hyperlora.config.schema import ConfigKey, config_keys

HEAD = """# Configuration

Every key of a run, made by `python -m hyperlora.config.reference` from `hyperlora/config/settings.py` and
the `config.py` of each method. Set one with `-c key=value`, several in a TOML file with `--config`;
an unknown key is answered with the nearest known one.
"""
TYPES = {int: "integer", float: "number", str: "text", bool: "true or false"}


def reference() -> str:
    """Return the page: type, default, range and meaning (with unit) of every key."""
    sections = groupby(config_keys(), lambda entry: entry.key.rpartition(".")[0])
    return HEAD + "".join(_section(name, list(entries)) for name, entries in sections)


def _section(name: str, entries: list[ConfigKey]) -> str:
    head = ["", f"## {name or 'Run'}", "", "| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*head, *map(_row, entries), ""])


def _row(entry: ConfigKey) -> str:
    default = str(entry.default).lower() if entry.type is bool else entry.default
    shown = "empty" if default == "" else f"`{default}`"
    return f"| `{entry.key}` | {TYPES[entry.type]} | {shown} | {entry.range} | {entry.meaning} |"


if __name__ == "__main__":
    print(reference(), end="")
