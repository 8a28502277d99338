"""The model card of an exported adapter or model: method, figures, configuration. It holds no data of any client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyperlora.config.schema import RunConfig
from hyperlora.reporting.run_files import RunFiles
from models.backbones.digits_vit import NAME as EMBEDDED_BACKBONE

ANCHOR = "anchor"


def model_card(run: RunFiles, name: str, *, loading: str, figures: Sequence[str]) -> str:
    """Return the card as Markdown with the metadata that the Hugging Face hub reads.

    Args:
        run: the run that it comes from.
        name: what was exported, for the title.
        loading: lines of Python that load it.
        figures: sentences about its accuracy, one for each line of the list.
    """
    config = run.config
    lines = [
        *_metadata(config),
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
        f"head) `{run.fingerprint}`. With other weights the adapter is worth nothing.",
        "",
        "## Configuration",
        "| key | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in config.public().items()),
        "",
    ]
    return "\n".join(lines)


def _metadata(config: RunConfig) -> list[str]:
    tags = ["lora", "federated-learning", "flower", config.method]
    base = [] if config.model.name == EMBEDDED_BACKBONE else [f"base_model: timm/{config.model.name}"]
    return ["---", "library_name: peft", *base, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def accuracy_of_client(run: RunFiles, client_id: str) -> list[str]:
    """Return sentences on the last evaluation of one client."""
    own = [one for one in run.scores if one["client_id"] == client_id and one["track"] == "start"]
    if not own:
        return ["this client was not evaluated"]
    return [
        f"{100 * one['zero_step']:.1f} % of {one['num_test']} held-out samples of the client itself, as received; "
        f"{100 * one['k_step']:.1f} % after {run.config.train.local_steps} local steps"
        for one in own
    ]


def accuracy_of_anchor(run: RunFiles) -> list[str]:
    """Return sentences on the anchor: the mean over clients where it was scored, else what clients received."""
    figures: dict[str, Any] = run.records[-1]["evaluation"]
    sentences = []
    for group in ("seen", "unseen"):
        scored = figures.get(f"{group} {ANCHOR}", figures.get(group))
        if scored:
            sentences.append(
                f"{100 * scored['zero_step']['mean']:.1f} % on the own test data of {scored['clients']} {group} "
                "clients, mean over clients, before any local step"
            )
    prior = "with the class prior of each client in the head's bias; the files here carry no prior"
    return [*sentences, f"measured {prior}"] if sentences and run.config.prior_strength else sentences
