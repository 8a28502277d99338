"""`hyperlora export`: the anchor, a client's adapter or a merged model out of a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli.output import reports_errors, say


@reports_errors
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    client: Annotated[str | None, typer.Option(help="Client-id whose adapter is exported; else the anchor.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Add it into the backbone (timm, transformers).")] = False,
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/exports/<name> if none.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Backbone weights (file or directory), if they moved.")] = None,
) -> None:
    """Write an adapter (PEFT) or a merged model (timm, transformers) with a model card that holds no data.

    Examples:

        hyperlora export runs/latest

        hyperlora export runs/latest --client rotated-2 --to my-adapter

        hyperlora export runs/latest --merged
    """
    from hyperlora.cli.exporting import export_adapter, export_merged  # torch takes seconds to import

    directory = export_merged(run, client, to, weights) if merged else export_adapter(run, client, to)
    say(f"{directory}: weights, configuration and README.md (model card)")
