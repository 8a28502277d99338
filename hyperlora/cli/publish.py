"""`hyperlora publish`: a run as one directory that others make adapters from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli.output import reports_errors, say


@reports_errors
def publish(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/published by default.")] = None,
    license_name: Annotated[str, typer.Option("--license", help="License of the files, by its hub name.")] = "other",
    with_backbone: Annotated[bool, typer.Option("--with-backbone", help="Include the backbone's weights.")] = False,
) -> None:
    """Package a run for `personalize`, with a model card and a statement of what the files reveal about clients.

    You can hand the directory on or upload it to the Hugging Face hub, where `personalize hf:owner/name` reads it.

    Examples:

        hyperlora publish runs/latest --to my-federation --license apache-2.0

        hyperlora personalize my-federation my-images
    """
    from hyperlora.reporting.publishing import publish_run  # torch takes seconds to import
    from hyperlora.reporting.run_files import RunFiles
    from hyperlora.storage.run_names import STATEMENT

    opened = RunFiles.open(run)
    target = publish_run(opened, to or opened.place_for("published"), license_name, with_backbone=with_backbone)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    say(f"{target}: {size / 2**20:.1f} MiB")
    say(f"read {target / STATEMENT} before you hand it on", style="yellow")
