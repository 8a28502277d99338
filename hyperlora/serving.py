"""An adapter for data that no client of a run had: signature, generated start, local steps, scores. No server.

personalize(Path("runs/latest"), Path("my-images"), PersonalizeOptions(steps=10))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from client_app.embedding_cache import open_embedding_cache
from client_app.runtime import ClientRuntime, TokenCache, choose_device, worthwhile_threads
from client_app.tasks import NothingKept, describe_clients, evaluate_adapter
from hyperlora.data.federation import SingleClient
from hyperlora.data.images import read_image_folder
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.model_card import write_card
from hyperlora.reporting.run_files import RunFiles, RunFilesError, new_directory
from hyperlora.reporting.state_view import open_checkpoint
from hyperlora.storage.files import write_json
from models.backbones.transforms import ImageTransform
from strategies.methods.base.server import with_clients


@dataclass(frozen=True)
class PersonalizeOptions:
    """How to personalise.

    Attributes:
        name: of the new client and its adapter; that of the folder by default.
        steps: local steps K; those of the run by default.
        device: ``auto``, ``cpu`` or ``cuda``.
        weights: the backbone's weights, where they are not where the run found them.
        target: new directory for the adapters; ``<run>/personal/<name>`` by default.
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
        num_train, num_validation, num_test: images in each part.
        after_round: the round of the run's checkpoint.
        steps: numbers of local steps that were scored: 0, or 0 and K.
        accuracy, validation_loss: a value for each of them.
    """

    directory: str
    num_train: int
    num_validation: int
    num_test: int
    after_round: int
    steps: Sequence[int]
    accuracy: Sequence[float]
    validation_loss: Sequence[float]


def personalize(run_directory: Path, images: Path, options: PersonalizeOptions | None = None) -> Personalized:
    """Make, score and write adapters for a folder of images, as PEFT directories with model cards.

    ``generated`` is what the run's method makes for the signature of the images alone; ``after-<K>-steps`` is that
    after K local steps. ``scores.json`` has the scores of both.

    Args:
        run_directory: a run with a checkpoint.
        images: ``<class>/*.jpg`` or ``*.png``, classes of the run.
        options: name, local steps, device, weights and target.

    Raises:
        RunFilesError, DataError, BackboneError, AdapterError, StorageError: it cannot be done.
    """
    options = options or PersonalizeOptions()
    options = replace(options, name=options.name or images.absolute().name)
    run = RunFiles.open(run_directory)
    target = new_directory(options.target or run.path / "personal" / options.name)
    scored = _make_adapters(run, images, options, target)
    for steps, accuracy in zip(scored.steps, scored.accuracy, strict=True):
        figures = [f"{100 * accuracy:.1f} % of {scored.num_test} held-out images, {steps} local steps"]
        write_card(run, target / adapter_name(steps), f"adapter {options.name}", figures=figures)
    scores = {name: value for name, value in asdict(scored).items() if name != "directory"}
    write_json(target / "scores.json", scores)
    return scored


def adapter_name(steps: int) -> str:
    """Return the name of the directory of an adapter after so many local steps."""
    return f"after-{steps}-steps" if steps else "generated"


def _make_adapters(run: RunFiles, images: Path, options: PersonalizeOptions, target: Path) -> Personalized:
    runtime = _open_runtime(run, images, options)
    described = describe_clients(runtime, [options.name])
    if described.left_out:
        raise RunFilesError(described.left_out[options.name])
    after_round, start = start_for(run, described.cards[0], runtime.model.backbone.num_heads)
    model = runtime.model
    steps = sorted({0, runtime.config.train.steps_of_use})
    request = EvaluateRequest(options.name, after_round, steps, start)
    reply = evaluate_adapter(runtime, request, NothingKept())
    trained = Start(model.extract(), start.plan).whole()
    model.save(runtime.with_prior(options.name, start.whole()), target / adapter_name(0))
    if steps[-1]:
        model.save(trained, target / adapter_name(steps[-1]))
    data = runtime.client(options.name)
    parts = (len(data.train), len(data.validation), len(data.test))
    return Personalized(str(target), *parts, after_round, steps, reply.test_accuracy, reply.validation_loss)


def _open_runtime(run: RunFiles, images: Path, options: PersonalizeOptions) -> ClientRuntime:
    known = run.require_clients()
    if options.name in known.cards:
        raise RunFilesError(f"the run has a client '{options.name}' already: choose another name with --name")
    model = run.rebuild_model(options.weights)
    transform = model.backbone.transform
    if not isinstance(transform, ImageTransform):
        raise RunFilesError(f"'{model.backbone.name}' takes no images, and personalize reads a folder of images")
    steps = run.config.train.steps_of_use if options.steps is None else options.steps
    config = run.config.with_values({"train.adapt-steps": steps, "train.device": options.device})
    client = read_image_folder(
        images,
        options.name,
        known.class_names,
        image_size=transform.size,
        channels=transform.channels,
        validation_fraction=config.data.validation_fraction,
        test_fraction=config.data.test_fraction,
    )
    federation = SingleClient(options.name, lambda: client, tuple(known.class_names))
    model.to(choose_device(options.device))
    torch.set_num_threads(worthwhile_threads(model.backbone, config.train.batch_size))
    embedded = open_embedding_cache(config.train.embedding_cache_mb)
    cache = TokenCache(model, federation, config.train.prefix_cache_mb * 2**20, embedded=embedded)
    return ClientRuntime(config, model, federation, cache, at_site=False)


def start_for(run: RunFiles, card: ClientCard, num_heads: int = 1) -> tuple[int, Start]:
    """Return the round of the last checkpoint, and the start and plan of its method for a client that it never met.

    Raises:
        RunFilesError: the run has no checkpoint, or its clients train only a core.
        StateError: it has some, and none can be used.
    """
    method, found = open_checkpoint(run, num_heads)
    if found is None:
        raise RunFilesError(
            f"the run in '{run.path}' has no checkpoint: run it again with run.checkpoint-every above 0"
        )
    cards: Mapping[str, ClientCard] = {**run.require_clients().cards, card.client_id: card}
    state = with_clients(method, found.state, cards)
    plan = method.plan(state, card)
    if plan.core:
        raise RunFilesError(f"method '{run.config.method}' cannot be personalised here: its clients train only a core")
    return found.server_round, Start(method.starts(state, [card])[0], plan)
