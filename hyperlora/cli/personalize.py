"""`hyperlora personalize`: an adapter for your own images or texts, made from a finished run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlora.cli.output import CommandError, OutputFormat, reports_errors, say

if TYPE_CHECKING:
    from hyperlora.serving import Personalized

IMAGES_DIFFER = "images may differ in polarity (dark on bright), in cropping or in size"
TEXTS_DIFFER = "texts may differ in language, in length or in what they are about"


@reports_errors
def personalize(
    run: Annotated[Path, typer.Argument(help="Run directory; demo is the federation that comes with the package.")],
    data: Annotated[Path, typer.Argument(help="Your images, as FOLDER/<class>/*.jpg or *.png; or a table of texts.")],
    sample: Annotated[bool, typer.Option("--sample", help="First write digits that no client had to DATA.")] = False,
    steps: Annotated[int | None, typer.Option(min=0, help="Local steps K; by default as many as in the run.")] = None,
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/personal/<name> by default.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter; by default that of the data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Backbone weights (safetensors), if they moved.")] = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="How the result is printed.")] = OutputFormat.TEXT,
) -> None:
    """Make an adapter for your own data: no server, no federation, nothing leaves this machine.

    A part of the data is held out to score it: as generated, and after K local steps on the rest. The anchor that all
    clients of the run share is scored beside it, and a validation part says which adapter to use.

    Examples:

        hyperlora personalize demo my-digits --sample

        hyperlora personalize runs/latest my-images

        hyperlora personalize runs/latest my-reviews.csv

        hyperlora personalize runs/latest my-images --steps 0 --to my-adapter
    """
    from hyperlora import serving  # torch takes seconds to import
    from hyperlora.data.sample import write_sample

    if device not in ("auto", "cpu", "cuda"):
        raise CommandError(f"--device must be auto, cpu or cuda, got '{device}'")
    if sample:
        write_sample(data)
    options = serving.PersonalizeOptions(name or "", steps, device, weights, target=to)
    made = serving.personalize(run, data, options)
    if output is OutputFormat.JSON:
        say(json.dumps(asdict(made)))
    else:
        _print_scores(made, IMAGES_DIFFER if data.is_dir() else TEXTS_DIFFER)


def _print_scores(made: Personalized, hint: str) -> None:
    say(f"{made.num_train} samples to adapt to, {made.num_validation} to choose by, {made.num_test} to score by")
    rows = [(_score(accuracy), _what(steps)) for steps, accuracy in zip(made.steps, made.accuracy, strict=True)]
    anchors = zip(made.steps, made.anchor_accuracy, strict=False)
    rows += [(_score(accuracy), _of_anchor(steps)) for steps, accuracy in anchors]
    rows.append((_score(made.majority_accuracy), "for always saying the class that you have most of"))
    for figure, what in rows:
        say(f"{figure} {what}")
    _print_warnings(made, hint)
    say(f"PEFT directories in {made.directory}; use {made.use}{_why(made)}")


def _score(accuracy: float) -> str:
    return f"{100 * accuracy:5.1f} %"


def _what(steps: int) -> str:
    return f"after {steps} local steps" if steps else "as generated, before any local step"


def _of_anchor(steps: int) -> str:
    return f"from the anchor, after {steps} local steps" if steps else "with the anchor, which all clients share"


def _why(made: Personalized) -> str:
    if not made.num_validation:
        return ": there are no validation samples to choose by"
    fallen = ": the generated adapter loses to the anchor here" if made.use.startswith("anchor") else ""
    return f", which has the lowest loss on {made.num_validation} validation samples{fallen}"


def _print_warnings(made: Personalized, hint: str) -> None:
    """Say where the figures mean less than they seem to."""
    found = made.likeness
    if found is not None:
        scale = f"clients of the run are at most {found.usual:.2f} from their nearest"
        say(f"nearest client: {found.nearest}, at a distance of {found.distance:.2f} ({scale})")
        if found.unlike:
            say(
                f"your data are unlike those of every client: what is generated may be worth little; {hint}",
                style="yellow",
            )
    if max(made.accuracy) <= made.majority_accuracy:
        say("no better than always saying one class: these adapters have not learned your data", style="yellow")
