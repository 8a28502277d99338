"""The reference of every configuration key as Markdown; ``python -m hyperlora.config.reference`` prints it."""

from __future__ import annotations

from itertools import groupby

from hyperlora.config.schema import ConfigKey, config_keys

HEAD = """# Configuration

Every key of a run, made from `hyperlora/config/schema.py` by
`python -m hyperlora.config.reference`. Set one with `-c key=value`, several in
a TOML file with `--config`; an unknown key is answered with the nearest known one.
"""
TYPES = {int: "integer", float: "number", str: "text", bool: "true or false"}


def reference() -> str:
    """Return the page: type, default, range and meaning (with unit) of every key."""
    sections = [
        _section(name, list(keys)) for name, keys in groupby(config_keys(), lambda one: one.key.rpartition(".")[0])
    ]
    return HEAD + "".join(sections)


def _section(name: str, keys: list[ConfigKey]) -> str:
    rows = [f"| `{one.key}` | {TYPES[one.type]} | {_default(one)} | {_range(one)} | {one.meaning} |" for one in keys]
    head = ["", f"## {name or 'Run'}", "", "| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _default(entry: ConfigKey) -> str:
    if entry.default == "":
        return "empty"
    return f"`{str(entry.default).lower() if entry.type is bool else entry.default}`"


def _range(entry: ConfigKey) -> str:
    return entry.check[1] if entry.check else ""


if __name__ == "__main__":
    print(reference(), end="")
