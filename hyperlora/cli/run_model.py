"""The backbone of a run, built again on this machine and checked to be the same."""

from __future__ import annotations

from pathlib import Path

from hyperlora.cli.output import CommandError
from hyperlora.reporting.run_files import RunFiles
from hyperlora.task import build_model
from models.adapters.adapted_model import AdaptedModel


def rebuild_model(run: RunFiles, weights: Path | None) -> AdaptedModel:
    """Return the run's backbone with an adapter of the run's shape on it.

    Args:
        run: the run.
        weights: a safetensors file (or directory of transformers) to take instead of the configured one.

    Raises:
        BackboneError, AdapterError: it cannot be built.
        CommandError: its weights are not those of the run.
    """
    config = run.config.model
    if weights:
        config = config.model_copy(update={"weights": str(weights.absolute())})
    if config.weights and not Path(config.weights).exists():
        raise CommandError(f"the run's weights '{config.weights}' are not on this machine: name them with --weights")
    model = build_model(run.config.data, config, run.config.lora)
    own = model.backbone.fingerprint
    if own != run.fingerprint:
        raise CommandError(
            f"the weights of '{config.name}' here have fingerprint {own[:12]}, the run was made with "
            f"{run.fingerprint[:12]}: name the run's own file with --weights"
        )
    return model
