"""`hyperlora export`: the anchor, a client's adapter or a merged model from a run directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlora.cli.output import CommandError, reports_errors, say
from hyperlora.config.sizes import parse_bytes
from hyperlora.storage.run_names import EVALUATION, is_published

if TYPE_CHECKING:
    from torch import Tensor

    from hyperlora.reporting.run_files import RunFiles
    from hyperlora.validation import ValidationScores
    from models.adapters.compression import Compressed

ANCHOR = "anchor"
CONFIG, WEIGHTS = PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


@reports_errors
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    client: Annotated[
        str | None, typer.Option(help="Client whose adapter to export; default: the shared anchor.")
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Merge it into the backbone (timm, transformers).")] = False,
    to: Annotated[Path | None, typer.Option(help="New directory; RUN/exports/<name> by default.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Backbone weights (file or directory), if they moved.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Truncate every module to this rank.")] = None,
    size: Annotated[str | None, typer.Option("--bytes", help="Truncate to at most this file size, as 50k.")] = None,
) -> None:
    """Write an adapter (PEFT) or a merged model (timm, transformers) with a model card that holds no data.

    Examples:

        hyperlora export runs/latest

        hyperlora export runs/latest --client rotated-2 --to my-adapter

        hyperlora export runs/latest --merged

        hyperlora export runs/latest --bytes 50k
    """
    from hyperlora.reporting.run_files import RunFiles  # torch takes seconds to import

    if rank and size:
        raise CommandError("--rank and --bytes both set the size of the adapter: give one of them")
    if merged and (rank or size):
        raise CommandError("a merged model always has the size of the backbone: leave out --rank and --bytes")
    most = _bytes_of(size) if size else 0
    opened = RunFiles.open(run)
    if rank or most:
        directory = _export_compressed(opened, client, to, weights, rank or 0, most)
    else:
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


def _export_compressed(
    run: RunFiles, client: str | None, to: Path | None, weights: Path | None, rank: int, most_bytes: int
) -> Path:
    from safetensors.torch import load_file

    from hyperlora.reporting.run_files import new_directory
    from hyperlora.storage.files import write_bytes, write_json
    from models.adapters.compression import compress

    source = _adapter_of(run, client)
    whole = load_file(source / WEIGHTS)
    made, name = compress(whole, rank=rank, most_bytes=most_bytes), f"rank-{rank}" if rank else f"{most_bytes}-bytes"
    with new_directory(to or run.place_for("exports") / f"{client or ANCHOR}-{name}") as target:
        write_bytes(target / WEIGHTS, made.content())
        write_json(target / CONFIG, made.configured(json.loads((source / CONFIG).read_text(encoding="utf-8"))))
        said = [_size_sentence(made, source), *_loss_sentences(run, client, weights, whole, made)]
        _write_card(run, client, target, more=[f"before it was cut; then: {'; '.join(said[:2])}"])
    for sentence in said:
        say(sentence)
    return target


def _size_sentence(made: Compressed, source: Path) -> str:
    ranks = sorted(set(made.ranks.values()))
    told = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return f"{len(made.content())} of {(source / WEIGHTS).stat().st_size} bytes, {told}"


def _loss_sentences(
    run: RunFiles, client: str | None, weights: Path | None, whole: dict[str, Tensor], made: Compressed
) -> list[str]:
    """Return what was lost: of accuracy where the run's data are here, else of every module's product."""
    from hyperlora.data.federation import DataError
    from hyperlora.reporting.run_files import RunFilesError
    from hyperlora.validation import validation_scores
    from models.backbones.backbone import BackboneError

    product = f"{100 * made.error:.1f} % of the products' norm is lost"
    try:
        return [_accuracy_sentence(validation_scores(run, [whole, made.tensors], client, weights)), product]
    except (BackboneError, DataError, RunFilesError) as error:
        modules = [
            f"  {100 * lost:5.1f} % {name.removeprefix('base_model.model.')}" for name, lost in made.errors.items()
        ]
        return [f"{product}, by module:", *modules, f"accuracy is not measured: {error}"]


def _accuracy_sentence(scores: ValidationScores) -> str:
    before, after = (100 * one for one in scores.accuracies)
    samples = f"{scores.samples} validation samples of {scores.clients} client(s)"
    return f"{before:.1f} % before, {after:.1f} % after ({after - before:+.1f}) on {samples}"


def _bytes_of(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise CommandError(f"--bytes: {error}") from error


def _adapter_of(run: RunFiles, client: str | None) -> Path:
    """Return the PEFT directory of a client's adapter, or of the anchor; raises CommandError or RunFilesError."""
    from hyperlora.reporting.run_files import require_adapter

    adapters = run.path / "adapters"
    if not run.config.lora.has_peft_form:
        from models.adapters.adapter import NO_FORM

        raise CommandError(NO_FORM)
    if is_published(run.path):
        if client:
            raise CommandError(f"'{run.path}' was published, which leaves clients' adapters out: leave out --client")
        return require_adapter(run.path / ANCHOR)
    if not adapters.is_dir() or not (run.path / EVALUATION).exists():  # written after the adapters, dropped on a resume
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


def _write_card(run: RunFiles, client: str | None, target: Path, loading: str = "", more: Sequence[str] = ()) -> None:
    from hyperlora.reporting.model_card import accuracy_of_anchor, accuracy_of_client, write_card

    figures = [accuracy_of_client(run, client)] if client else accuracy_of_anchor(run)
    write_card(
        run, target, f"adapter of client {client}" if client else ANCHOR, figures=[*figures, *more], loading=loading
    )
