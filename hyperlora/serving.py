"""An adapter for data that no client of a run had: signature, generated start, local steps, scores. No server.

personalize(Path("runs/latest"), Path("my-images"), PersonalizeOptions(steps=10))

The anchor, which all clients of the run share, is scored as well, and the validation share says which to use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from client_app.runtime import ClientRuntime
from hyperlora.config.schema import RunConfig
from hyperlora.data.federation import ClientData
from hyperlora.data.listing import Origin
from hyperlora.data.personal import Shares, read_image_folder, read_text_table
from hyperlora.newcomer import Tried, adapter_name, newcomer_runtime, try_newcomer
from hyperlora.reporting.likeness import Likeness, likeness
from hyperlora.reporting.model_card import write_card
from hyperlora.reporting.run_files import RunFiles, RunFilesError, new_directory, require_new
from hyperlora.storage.files import write_json
from models.adapters.adapter import NO_FORM
from models.backbones.backbone import Transform
from models.backbones.transforms import ImageTransform


@dataclass(frozen=True)
class PersonalizeOptions:
    """How to personalise.

    Attributes:
        name: of the new client and its adapter; that of the folder or file by default.
        steps: local steps K; those of the run by default.
        device: ``auto``, ``cpu`` or ``cuda``.
        weights: the backbone's weights, where they are not where the run found them.
        target: new directory for the adapters; ``<run>/personal/<name>`` by default, for a federation that somebody
            published ``personal/<name>`` in the current directory.
    """

    name: str = ""
    steps: int | None = None
    device: str = "auto"
    weights: Path | None = None
    target: Path | None = None


@dataclass(frozen=True)
class Personalized:
    """The result; accuracies are shares of the held-out test part, losses means over its validation part.

    Attributes:
        directory: where the PEFT directories lie.
        num_train, num_validation, num_test: samples in each part.
        after_round: the round of the run's checkpoint.
        steps: numbers of local steps that were scored: 0, or 0 and K.
        accuracy, validation_loss: a value for each of them, from the generated start.
        anchor_accuracy, anchor_validation_loss: the same from the anchor, from which local steps are made only where
            it begins with the lower validation loss; empty for a method without one.
        majority_accuracy: of one who always says the class that most of the samples to adapt to are of.
        likeness: how far the data are from those of the run's clients; None where it has too few.
        use: name of the directory whose adapter has the lowest loss on the validation part.
    """

    directory: str
    num_train: int
    num_validation: int
    num_test: int
    after_round: int
    steps: Sequence[int]
    accuracy: Sequence[float]
    validation_loss: Sequence[float]
    anchor_accuracy: Sequence[float]
    anchor_validation_loss: Sequence[float]
    majority_accuracy: float
    likeness: Likeness | None
    use: str


def personalize(run_directory: Path, own: Path, options: PersonalizeOptions | None = None) -> Personalized:
    """Make, score and write adapters for a person's own data, as PEFT directories with model cards.

    ``generated`` is what the run's method makes for the signature of the data alone; ``after-<K>-steps`` is that
    after K local steps. Where the anchor, or what K steps make of it, has the lowest validation loss,
    ``anchor`` and ``anchor-after-<K>-steps`` are written too. ``scores.json`` has all scores.

    Args:
        run_directory: a run with a checkpoint, or a federation that ``hyperlora publish`` wrote: its directory, or
            ``hf:owner/name``.
        own: a folder ``<class>/*.jpg`` or ``*.png``, or a csv, jsonl or parquet file of texts; classes of the run.
        options: name, local steps, device, weights and target.

    Raises:
        RunFilesError, DataError, BackboneError, AdapterError, StorageError: it cannot be done.
    """
    options = options or PersonalizeOptions()
    options = replace(options, name=options.name or (own.stem if own.is_file() else own.absolute().name))
    run = RunFiles.open(run_directory)
    target = options.target or run.place_for("personal") / options.name
    require_new(target)
    scored = _make_adapters(run, own, options, target)
    scores = {name: value for name, value in asdict(scored).items() if name != "directory"}
    write_json(Path(scored.directory) / "scores.json", scores)
    return scored


def _make_adapters(run: RunFiles, own: Path, options: PersonalizeOptions, place: Path) -> Personalized:
    runtime = _open_runtime(run, own, options)
    trial = try_newcomer(run, runtime)
    data = runtime.client(options.name)
    with new_directory(place) as target:
        for one in trial.all:
            if one is trial.generated or trial.use in one.losses():
                _write_adapters(run, runtime, one, target, len(data.test))
    generated, anchor = trial.generated.reply, trial.anchor.reply if trial.anchor else None
    return Personalized(
        directory=str(target),
        num_train=len(data.train),
        num_validation=len(data.validation),
        num_test=len(data.test),
        after_round=trial.after_round,
        steps=sorted(trial.generated.adapters),
        accuracy=generated.test_accuracy,
        validation_loss=generated.validation_loss,
        anchor_accuracy=anchor.test_accuracy if anchor else (),
        anchor_validation_loss=anchor.validation_loss if anchor else (),
        majority_accuracy=majority_accuracy(data),
        likeness=likeness(trial.card.signature, run.require_clients().cards),
        use=trial.use,
    )


def majority_accuracy(data: ClientData) -> float:
    """Return the test accuracy of always saying the class that most training samples are of."""
    majority = data.test.labels == data.train.labels.bincount().argmax()
    return float(majority.float().mean())


def _write_adapters(run: RunFiles, runtime: ClientRuntime, tried: Tried, target: Path, num_test: int) -> None:
    (client_id,) = runtime.federation.client_ids
    for (steps, adapter), accuracy in zip(sorted(tried.adapters.items()), tried.reply.test_accuracy, strict=True):
        directory = target / adapter_name(steps, tried.name)
        runtime.model.save(adapter, directory)
        figures = [f"{100 * accuracy:.1f} % of {num_test} held-out samples, {steps} local steps"]
        write_card(run, directory, f"adapter {client_id}", figures=figures)


def _open_runtime(run: RunFiles, own: Path, options: PersonalizeOptions) -> ClientRuntime:
    known = run.require_clients()
    if options.name in known.cards:
        raise RunFilesError(f"the run has a client '{options.name}' already: choose another name with --name")
    if not run.config.lora.has_peft_form:
        raise RunFilesError(NO_FORM)
    model = run.rebuild_model(options.weights)
    client = _read_own(own, options.name, known.class_names, run.config, model.backbone.transform)
    return newcomer_runtime(run, model, client, steps=options.steps, device=options.device)


def _read_own(own: Path, name: str, classes: Sequence[str], config: RunConfig, transform: Transform) -> ClientData:
    """Read what the backbone takes: a folder of images or a table of texts."""
    data, shares = config.data, Shares(config.data.validation_fraction, config.data.test_fraction)
    if isinstance(transform, ImageTransform):
        return read_image_folder(
            own, name, classes, image_size=transform.size, channels=transform.channels, shares=shares
        )
    columns = (data.text_column, data.label_column, data.domain_column)
    return read_text_table(own, name, data.name, Origin("", 1, tuple(classes), *columns), shares)
