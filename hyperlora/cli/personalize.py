"""`hyperlora personalize`: an adapter for a folder of your own images out of a finished run, in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlora.cli.output import CommandError, OutputFormat, reports_errors, say

if TYPE_CHECKING:
    from hyperlora.cli.personal import Outcome


@reports_errors
def personalize(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    folder: Annotated[Path, typer.Argument(help="Your images, as FOLDER/<class>/*.jpg or *.png.")],
    steps: Annotated[int | None, typer.Option(min=0, help="Local steps K; those of the run if none.")] = None,
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/personal/<name> if none.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter; that of the folder if none.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Backbone weights (safetensors), if they moved.")] = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="How the result is printed.")] = OutputFormat.TEXT,
) -> None:
    """Make an adapter for your own images: no server, no federation, nothing leaves this machine.

    A part of the images is held out to score it: as generated, and after K local steps on the rest.

    Examples:

        hyperlora personalize runs/latest my-images

        hyperlora personalize runs/latest my-images --steps 0 --to my-adapter
    """
    from hyperlora.cli.personal import Wishes
    from hyperlora.cli.personalizing import make_adapters  # torch takes seconds to import

    if device not in ("auto", "cpu", "cuda"):
        raise CommandError(f"--device must be auto, cpu or cuda, got '{device}'")
    wishes = Wishes(name or folder.absolute().name, steps, device, weights)
    target, outcome = make_adapters(run, folder, wishes, to)
    if output is OutputFormat.JSON:
        say(json.dumps({"directory": str(target), **outcome.as_json()}))
    else:
        tell(target, outcome)


def tell(target: Path, outcome: Outcome) -> None:
    """Print in sentences what came of it."""
    say(f"{outcome.num_train} images to adapt to, {outcome.num_test} held out to score the result")
    for steps, accuracy in zip(outcome.steps, outcome.accuracy, strict=True):
        what = f"after {steps} local steps" if steps else "as generated, before any local step"
        say(f"{100 * accuracy:5.1f} % {what}")
    if len(outcome.steps) > 1 and outcome.num_validation:
        better = outcome.validation_loss[1] < outcome.validation_loss[0]
        say(f"lower loss on {outcome.num_validation} validation images: {'after them' if better else 'as generated'}")
    say(f"PEFT directories in {target}")
