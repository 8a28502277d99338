"""Keys and methods that had another name once or are gone, so that old run directories can still be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "defence.norm": "defence.norm-rule",
    "generator.virtual": "generator.virtual-samples",
    "hyperlora.rehearse": "hyperlora.probe-clients",
    "rivals.lora-fair-form": "lora-fair.form",
    "rivals.lora-fair-lambda": "lora-fair.penalty",
    "rivals.hyperflora-learning-rate": "pfedhn-lora.learning-rate",
    "hyperflora.learning-rate": "pfedhn-lora.learning-rate",
    "hyperflora.hidden": "pfedhn-lora.hidden",
    "hyperflora.inputs": "pfedhn-lora.inputs",
}
RENAMED_METHODS: Mapping[str, str] = {"hyperflora": "pfedhn-lora"}
SHARED: Mapping[str, str] = {"pfedhn-lora.hidden": "generator.hidden", "pfedhn-lora.inputs": "generator.inputs"}
"""Keys whose value another key gave once."""

REMOVED: Mapping[str, str] = {
    **dict.fromkeys(
        ("hyperlora.gradient", "hyperlora.sketch-size", "hyperlora.learn", "hyperlora.learning-rate"),
        "nothing is learned from validation gradients any more",
    ),
    "hyperlora.merge-own": "Potara's gate is method = potara",
    "hyperlora.shuffle-signatures": "the ablation is in benchmarks.amortisation",
    "generator.newcomer-share": "generator.share is that of all clients",
}
"""Keys that are gone, and why (docs/results/earlier.md)."""


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings under today's keys, without those that are gone, and with today's name of the method."""
    current = {RENAMED.get(name, name): value for name, value in values.items() if name not in REMOVED}
    if "method" in current:
        current["method"] = RENAMED_METHODS.get(current["method"], current["method"])
    shared = {name: values[source] for name, source in SHARED.items() if source in values}
    return {**shared, **current}
