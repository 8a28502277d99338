"""`hyperlora export`: the anchor, a client's adapter or a merged model from a run directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlora.cli.output import CommandError, reports_errors, say

if TYPE_CHECKING:
    from hyperlora.reporting.run_files import RunFiles

ANCHOR = "anchor"
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


@reports_errors
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    client: Annotated[str | None, typer.Option(help="Client whose adapter is exported; by default the anchor.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Add it into the backbone (timm, transformers).")] = False,
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/exports/<name> by default.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Backbone weights (file or directory), if they moved.")] = None,
) -> None:
    """Write an adapter (PEFT) or a merged model (timm, transformers) with a model card that holds no data.

    Examples:

        hyperlora export runs/latest

        hyperlora export runs/latest --client rotated-2 --to my-adapter

        hyperlora export runs/latest --merged
    """
    from hyperlora.reporting.run_files import RunFiles  # torch takes seconds to import

    opened = RunFiles.open(run)
    directory = _export_merged(opened, client, to, weights) if merged else _export_adapter(opened, client, to)
    say(f"{directory}: weights, configuration and README.md (model card)")


def _export_adapter(run: RunFiles, client: str | None, to: Path | None) -> Path:
    from hyperlora.reporting.run_files import new_directory

    source = _adapter_of(run, client)
    with new_directory(to or run.place_for("exports") / (client or ANCHOR)) as target:
        for name in PEFT_FILES:
            shutil.copyfile(source / name, target / name)
        _write_card(run, client, target)
    return target


def _export_merged(run: RunFiles, client: str | None, to: Path | None, weights: Path | None) -> Path:
    from hyperlora.reporting.run_files import new_directory
    from models.adapters.export import merged, save_merged

    source, names = _adapter_of(run, client), run.require_clients().class_names
    model = run.rebuild_model(weights)
    with new_directory(to or run.place_for("exports") / f"{client or ANCHOR}-merged") as target:
        _write_card(run, client, target, save_merged(merged(model, source), model, names, target))
    return target


def _adapter_of(run: RunFiles, client: str | None) -> Path:
    """Return the PEFT directory of a client's adapter, or of the anchor; raises CommandError or RunFilesError."""
    from hyperlora.reporting.run_files import require_adapter

    adapters = run.path / "adapters"
    if not adapters.is_dir():
        raise CommandError(
            f"the run in '{run.path}' has not ended, so it wrote no adapters; "
            f"go on with: hyperlora run --resume {run.path}"
        )
    names = sorted(path.name for path in adapters.iterdir() if path.name != ANCHOR)
    if client and client not in names:
        raise CommandError(f"the run has no client '{client}'; it has {', '.join(names)}")
    wanted = adapters / (client or ANCHOR)
    if not wanted.is_dir():
        raise CommandError(f"method '{run.config.method}' has no anchor: name a client with --client, as {names[0]}")
    return require_adapter(wanted)


def _write_card(run: RunFiles, client: str | None, target: Path, loading: str = "") -> None:
    from hyperlora.reporting.model_card import accuracy_of_anchor, accuracy_of_client, write_card

    figures = [accuracy_of_client(run, client)] if client else accuracy_of_anchor(run)
    write_card(run, target, f"adapter of client {client}" if client else ANCHOR, figures=figures, loading=loading)
