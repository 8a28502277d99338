"""The model card of an exported adapter or model: method, figures, configuration. It holds no data of any client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperlora.config.schema import RunConfig
from hyperlora.data.opening import TEXTS
from hyperlora.reporting.figures import ANCHOR, GROUPS, scores_by_client
from hyperlora.reporting.run_files import RunFiles
from hyperlora.storage.files import write_text
from models.backbones.digits_vit import NAME as EMBEDDED_BACKBONE

LOAD_PEFT = """
from hyperlora import {imported}
from peft import PeftModel

# here, beside the directory "{directory}"; weights="" takes those that the model itself comes with
backbone = build_backbone({arguments})
model = PeftModel.from_pretrained(backbone.module, "{directory}").eval()
# logits = model(backbone.prepare(samples)), for {samples}
"""
A_BATCH = "images (n, channels, {0}, {0}) of type uint8"


def write_card(
    run: RunFiles,
    directory: Path,
    name: str,
    *,
    figures: Sequence[str],
    loading: str = "",
    license_name: str = "",
) -> None:
    """Write the card as ``README.md``: Markdown with the metadata that the Hugging Face hub reads.

    Args:
        run: the run that it comes from.
        directory: where the exported files are.
        name: what was exported, for the title.
        figures: sentences about its accuracy, each a line of a list.
        loading: lines of Python that load it; those for PEFT by default.
        license_name: of the files, as the hub names it; empty says nothing.
    """
    loading = loading or _loading(run, directory.name)
    config = run.config
    lines = [
        *_metadata(config, license_name),
        f"# {name}: {config.model.name} adapted to {config.data.name} by {config.method}",
        "",
        f"Made by federated learning ({config.method}, HyperLoRA on Flower): {len(run.records)} rounds of "
        f"{config.federation.clients_per_round} clients with {config.train.local_steps} local steps of "
        f"{config.train.batch_size}. LoRA rank {config.lora.rank}, alpha {config.lora.alpha:g}, on the last "
        f"{config.lora.last_blocks} blocks, and a head. Training data stayed with the clients; this card and these "
        "files hold none.",
        "",
        "## Accuracy",
        *(f"- {sentence}" for sentence in figures),
        "",
        "## Loading",
        "```python",
        loading.strip(),
        "```",
        "",
        "## Backbone",
        f"`{config.model.name}`, frozen, {config.model.image_size} px, fingerprint (SHA-256 of all weights but the "
        f"head) `{run.fingerprint}`. The adapter works with these weights only.",
        "",
        "## Configuration",
        "| key | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in config.public().items()),
        "",
    ]
    write_text(directory / "README.md", "\n".join(lines))


def _loading(run: RunFiles, directory: str) -> str:
    """Return lines of Python that load a PEFT directory into the backbone of the run."""
    config, names = run.config, run.require_clients().class_names
    asked = {"name": config.model.name, "weights": "", "image_size": config.model.image_size, "num_classes": len(names)}
    if config.model.name.startswith("hf:"):
        asked |= {"max_length": config.model.max_length, "class_names": list(names), "prompt": config.model.prompt}
        asked |= {"text_tower": config.model.text_tower, "revision": config.model.revision}
    arguments = ", ".join(f"{name}={_literal(value)}" for name, value in asked.items())
    embedded = config.model.name == EMBEDDED_BACKBONE
    return LOAD_PEFT.format(
        imported="build_backbone, digits_public" if embedded else "build_backbone",
        arguments=arguments + (", pretraining=digits_public" if embedded else ""),
        directory=directory,
        samples="a list of texts" if config.data.name in TEXTS else A_BATCH.format(config.model.image_size),
    )


def _literal(value: object) -> str:
    """Return the Python literal of a value, its strings in double quotes as the rest of the example."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | list) else repr(value)


def _metadata(config: RunConfig, license_name: str) -> list[str]:
    tags = ["lora", "federated-learning", "flower", config.method]
    base = [] if config.model.name == EMBEDDED_BACKBONE else [f"base_model: timm/{config.model.name}"]
    terms = [f"license: {license_name}"] if license_name else []
    return ["---", "library_name: peft", *terms, *base, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def accuracy_of_client(run: RunFiles, client_id: str) -> str:
    """Return a sentence on the last evaluation of one client."""
    return accuracy_sentence(scores_by_client(run.scores).get(client_id), run.config)


def accuracy_sentence(score: Mapping[str, Any] | None, config: RunConfig) -> str:
    """Return a sentence on an entry of ``evaluation.json``; None where the client has none."""
    if score is None:
        return "this client was not evaluated"
    return (
        f"{100 * score['zero_step']:.1f} % of {score['num_test']} held-out samples of the client itself, as received; "
        f"{100 * score['k_step']:.1f} % after {config.train.steps_of_use} local steps"
    )


def accuracy_of_federation(run: RunFiles) -> list[str]:
    """Return sentences on what clients received, and on the anchor where it was scored beside that."""
    figures: dict[str, Any] = run.records[-1]["evaluation"]
    return [
        f"{_mean(figures[group])} on the test data of {figures[group]['clients']} {group} clients, mean over clients, "
        f"with the adapters made for them, before any local step{_beside(figures.get(f'{group} {ANCHOR}'))}"
        for group in GROUPS
        if group in figures
    ] or ["not evaluated"]


def _beside(anchor: Mapping[str, Any] | None) -> str:
    return f"; {_mean(anchor)} with the anchor that all share" if anchor else ""


def _mean(spread: Mapping[str, Any]) -> str:
    return f"{100 * spread['zero_step']['mean']:.1f} %"


def accuracy_of_anchor(run: RunFiles) -> list[str]:
    """Return sentences on the anchor: the mean over clients where it was scored, else what clients received."""
    figures: dict[str, Any] = run.records[-1]["evaluation"]
    scored = {group: figures.get(f"{group} {ANCHOR}", figures.get(group)) for group in GROUPS}
    sentences = [
        f"{_mean(spread)} on the test data of {spread['clients']} {group} clients, mean over clients, before any local "
        "step"
        for group, spread in scored.items()
        if spread
    ]
    if not sentences:
        return ["not evaluated"]
    if run.config.prior_strength:
        sentences.append(
            "measured with the class prior of each client in the head's bias; the files here carry no prior"
        )
    return sentences
