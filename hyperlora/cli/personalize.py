"""`hyperlora personalize`: an adapter for a folder of your own images, made from a finished run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlora.cli.output import CommandError, OutputFormat, reports_errors, say

if TYPE_CHECKING:
    from hyperlora.serving import Personalized


@reports_errors
def personalize(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    folder: Annotated[Path, typer.Argument(help="Your images, as FOLDER/<class>/*.jpg or *.png.")],
    steps: Annotated[int | None, typer.Option(min=0, help="Local steps K; by default as many as in the run.")] = None,
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/personal/<name> by default.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter; by default that of the folder.")] = None,
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
    from hyperlora import serving  # torch takes seconds to import

    if device not in ("auto", "cpu", "cuda"):
        raise CommandError(f"--device must be auto, cpu or cuda, got '{device}'")
    options = serving.PersonalizeOptions(name or "", steps, device, weights, target=to)
    made = serving.personalize(run, folder, options)
    if output is OutputFormat.JSON:
        say(json.dumps(asdict(made)))
    else:
        _print_scores(made)


def _print_scores(made: Personalized) -> None:
    say(f"{made.num_train} images to adapt to, {made.num_test} held out to score the result")
    for steps, accuracy in zip(made.steps, made.accuracy, strict=True):
        what = f"after {steps} local steps" if steps else "as generated, before any local step"
        say(f"{100 * accuracy:5.1f} % {what}")
    if len(made.steps) > 1 and made.num_validation:
        better = made.validation_loss[1] < made.validation_loss[0]
        say(f"lower loss on {made.num_validation} validation images: {'after them' if better else 'as generated'}")
    say(f"PEFT directories in {made.directory}")
