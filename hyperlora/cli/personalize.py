"""`hyperlora personalize`: an adapter for your own images or texts, made from a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hyperlora.cli.output import CommandError, OutputFormat, reports_errors, say

if TYPE_CHECKING:
    from hyperlora.from_words import MadeFromWords
    from hyperlora.serving import Personalized

Made = TypeVar("Made", "Personalized", "MadeFromWords")
IMAGES_DIFFER = "images may differ in polarity (dark on bright), in cropping or in size"
SHOWN = 4
"""Domains that a description is said to be like, at most."""
TEXTS_DIFFER = "texts may differ in language, in length or in what they are about"


@reports_errors
def personalize(
    run: Annotated[Path, typer.Argument(help="Run directory; demo is the federation that comes with the package.")],
    data: Annotated[
        Path | None, typer.Argument(help="Your images, as FOLDER/<class>/*.jpg or *.png; or a table of texts.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="First write digits in a new style to DATA.")] = False,
    steps: Annotated[int | None, typer.Option(min=0, help="Local training steps K; default: as in the run.")] = None,
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/personal/<name> by default.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter; by default that of the data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Backbone weights (safetensors), if they moved.")] = None,
    words: Annotated[str | None, typer.Option(help="Describe your data in a sentence, instead of DATA.")] = None,
    classes: Annotated[str | None, typer.Option(help="Those of the run's classes you have: a,b or a=30,b=70.")] = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="How the result is printed.")] = OutputFormat.TEXT,
) -> None:
    """Make an adapter for your own data: no server, no federation, nothing leaves this machine.

    A part of the data is held out for testing. The adapter is scored as generated and after K local training steps on
    the rest, next to the anchor that all clients of the run share. The loss on a validation split decides which to use.

    Examples:

        hyperlora personalize demo my-digits --sample

        hyperlora personalize runs/latest my-images

        hyperlora personalize runs/latest my-reviews.csv

        hyperlora personalize runs/latest my-images --steps 0 --to my-adapter

        hyperlora personalize runs/latest --words "reviews of kitchen appliances" --classes negative,positive
    """
    if device not in ("auto", "cpu", "cuda"):
        raise CommandError(f"--device must be auto, cpu or cuda, got '{device}'")
    if words is not None or classes is not None:
        if data is not None or sample or steps is not None:
            raise CommandError("--words and --classes replace data: leave DATA, --sample and --steps out")
        made = _from_words(
            run, words, classes, {"name": name or "", "device": device, "weights": weights, "target": to}
        )
        _print_made(made, output, _print_description)
        return
    if data is None:
        raise CommandError("expected your data (a folder or a table), or --words or --classes, and got none of them")
    from hyperlora import serving  # torch takes seconds to import
    from hyperlora.data.sample import write_sample

    if sample:
        write_sample(data)
    hint = IMAGES_DIFFER if data.is_dir() else TEXTS_DIFFER
    options = serving.PersonalizeOptions(name or "", steps, device, weights, target=to)
    _print_made(serving.personalize(run, data, options), output, lambda made: _print_scores(made, hint))


def _print_made(made: Made, output: OutputFormat, in_words: Callable[[Made], None]) -> None:
    if output is OutputFormat.JSON:
        say(json.dumps(asdict(made)))
    else:
        in_words(made)


def _from_words(run: Path, words: str | None, classes: str | None, options: dict[str, Any]) -> MadeFromWords:
    from hyperlora.from_words import Description, personalize_from_words

    if words is not None and not words.strip():
        raise CommandError("--words is empty: say in a sentence what your data are, or leave it out")
    listed = dict(_class_share(part.strip()) for part in (classes or "").split(",") if part.strip())
    if classes is not None and not listed:
        raise CommandError("--classes is empty: list names of classes with commas between them, or leave it out")
    return personalize_from_words(run, Description((words or "").strip(), listed), **options)


def _class_share(part: str) -> tuple[str, float]:
    """Read ``name`` or ``name=share``."""
    name, separator, share = part.rpartition("=")
    if not separator:
        return part, 1.0
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise CommandError(f"--classes: the share of '{name.strip()}' must be a number above 0, got '{share.strip()}'")
    return name.strip(), value


def _print_description(made: MadeFromWords) -> None:
    shares = [f"{name or 'no name'} {100 * share:.0f} %" for name, share in list(made.domains.items())[:SHOWN]]
    say(f"no data were used; your description was matched to a mixture of the run's domains: {', '.join(shares)}")
    if not made.personal:
        say(
            "this run gives every client the same adapter, whatever the description, apart from the class prior",
            style="yellow",
        )
    say(f"PEFT directory in {made.directory}; use generated")


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
                f"your data are unlike those of every client: the generated adapter may perform poorly; {hint}",
                style="yellow",
            )
    if max(made.accuracy) <= made.majority_accuracy:
        say("no better than always predicting one class: these adapters do not fit your data", style="yellow")
