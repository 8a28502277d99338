"""Keys that had another name once, so that old run directories can still be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")

RENAMED: Mapping[str, str] = {
    "defence.norm": "defence.norm-rule",
    "generator.virtual": "generator.virtual-samples",
    "hyperlora.rehearse": "hyperlora.probe-clients",
    "rivals.lora-fair-form": "lora-fair.form",
    "rivals.lora-fair-lambda": "lora-fair.penalty",
    "rivals.hyperflora-learning-rate": "hyperflora.learning-rate",
}
SHARED: Mapping[str, str] = {"hyperflora.hidden": "generator.hidden", "hyperflora.inputs": "generator.inputs"}
"""Keys whose value another key gave once."""


def current_names(values: Mapping[str, V]) -> dict[str, V]:
    """Return stored settings under today's keys."""
    current = {RENAMED.get(name, name): value for name, value in values.items()}
    shared = {name: values[source] for name, source in SHARED.items() if source in values}
    return {**shared, **current}
