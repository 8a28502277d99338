"""An adapter for data that no client of a run had: signature, generated start, local steps, scores. No server.

personalize(Path("runs/latest"), Path("my-images"), PersonalizeOptions(steps=10))

The anchor, which all clients of the run share, is scored as well, and the validation share says which to use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from client_app.device import choose_device, worthwhile_threads
from client_app.embedding_cache import open_embedding_cache
from client_app.runtime import ClientRuntime
from client_app.tasks import NothingKept, describe_classes, describe_clients, evaluate_adapter
from client_app.token_cache import TokenCache
from hyperlora.config.schema import RunConfig
from hyperlora.data.federation import ClientData, SingleClient
from hyperlora.data.listing import Origin
from hyperlora.data.personal import Shares, read_image_folder, read_text_table
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.reporting.likeness import Likeness, likeness
from hyperlora.reporting.model_card import write_card
from hyperlora.reporting.run_files import RunFiles, RunFilesError, new_directory, require_new
from hyperlora.reporting.state_view import open_checkpoint
from hyperlora.storage.files import write_json
from models.adapters.adapter import Adapter
from models.backbones.backbone import Transform
from models.backbones.transforms import ImageTransform
from strategies.methods.base.server import AsksStatistics, served_starts, with_clients

GENERATED, ANCHOR = "generated", "anchor"


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
        anchor_accuracy, anchor_validation_loss: the same from the anchor; empty for a method without one.
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
    after K local steps. Where the anchor has the lower validation loss, ``anchor`` and ``anchor-after-<K>-steps`` are
    written too. ``scores.json`` has all scores.

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


def adapter_name(steps: int, start: str = GENERATED) -> str:
    """Return the name of the directory of an adapter after so many local steps from a start."""
    if not steps:
        return start
    return f"after-{steps}-steps" if start == GENERATED else f"{start}-after-{steps}-steps"


@dataclass(frozen=True)
class _Tried:
    """A start with the client's prior, what became of it, and the client's scores of both."""

    name: str
    adapters: Mapping[int, Adapter]
    reply: EvaluateReply

    def losses(self) -> dict[str, float]:
        """Return the validation loss by the name of the directory."""
        steps = sorted(self.adapters)
        return {adapter_name(k, self.name): loss for k, loss in zip(steps, self.reply.validation_loss, strict=True)}


def _make_adapters(run: RunFiles, own: Path, options: PersonalizeOptions, place: Path) -> Personalized:
    runtime = _open_runtime(run, own, options)
    described = describe_clients(runtime, [options.name])
    if described.left_out:
        raise RunFilesError(described.left_out[options.name])
    card = described.cards[0]
    after_round, start = start_for(run, card, runtime)
    generated = _try_start(runtime, GENERATED, after_round, start)
    shared = anchor_of(run)
    anchor = [] if shared is None else [_try_start(runtime, ANCHOR, after_round, replace(start, adapter=shared))]
    losses = {name: loss for one in (generated, *anchor) for name, loss in one.losses().items()}
    data = runtime.client(options.name)
    use = min(losses, key=losses.__getitem__) if len(data.validation) else adapter_name(0)
    with new_directory(place) as target:
        for one in (generated, *(one for one in anchor if use in one.losses())):
            _write_adapters(run, runtime, one, target, len(data.test))
    majority = data.test.labels == data.train.labels.bincount().argmax()
    return Personalized(
        directory=str(target),
        num_train=len(data.train),
        num_validation=len(data.validation),
        num_test=len(data.test),
        after_round=after_round,
        steps=sorted(generated.adapters),
        accuracy=generated.reply.test_accuracy,
        validation_loss=generated.reply.validation_loss,
        anchor_accuracy=anchor[0].reply.test_accuracy if anchor else (),
        anchor_validation_loss=anchor[0].reply.validation_loss if anchor else (),
        majority_accuracy=float(majority.float().mean()),
        likeness=likeness(card.signature, run.require_clients().cards),
        use=use,
    )


def _try_start(runtime: ClientRuntime, name: str, after_round: int, start: Start) -> _Tried:
    """Score a start before and after the local steps, which begin anew."""
    (client_id,) = runtime.federation.client_ids
    steps = sorted({0, runtime.config.train.steps_of_use})
    request = EvaluateRequest(client_id, after_round, steps, start)
    reply = evaluate_adapter(runtime, request, NothingKept())
    trained = Start(runtime.model.extract(), start.plan).whole()
    ends = {0: runtime.with_prior(client_id, start.whole())}
    return _Tried(name, {steps[-1]: trained, **ends}, reply)


def _write_adapters(run: RunFiles, runtime: ClientRuntime, tried: _Tried, target: Path, num_test: int) -> None:
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
    model = run.rebuild_model(options.weights)
    steps = run.config.train.steps_of_use if options.steps is None else options.steps
    config = run.config.with_values({"train.adapt-steps": steps, "train.device": options.device})
    client = _read_own(own, options.name, known.class_names, config, model.backbone.transform)
    federation = SingleClient(options.name, lambda: client, tuple(known.class_names))
    model.to(choose_device(options.device))
    torch.set_num_threads(worthwhile_threads(model.backbone, config.train.batch_size))
    embedded = open_embedding_cache(config.train.embedding_cache_mb)
    cache = TokenCache(model, federation, config.train.prefix_cache_mb * 2**20, embedded=embedded)
    return ClientRuntime(config, model, federation, cache, at_site=False)


def _read_own(own: Path, name: str, classes: Sequence[str], config: RunConfig, transform: Transform) -> ClientData:
    """Read what the backbone takes: a folder of images or a table of texts."""
    data, shares = config.data, Shares(config.data.validation_fraction, config.data.test_fraction)
    if isinstance(transform, ImageTransform):
        return read_image_folder(
            own, name, classes, image_size=transform.size, channels=transform.channels, shares=shares
        )
    columns = (data.text_column, data.label_column, data.domain_column)
    return read_text_table(own, name, data.name, Origin("", 1, tuple(classes), *columns), shares)


def anchor_of(run: RunFiles) -> Adapter | None:
    """Return the adapter that all clients share after the last checkpoint; None where the method has none."""
    method, found = open_checkpoint(run)
    return None if found is None else method.anchor(found.state)


def start_for(run: RunFiles, card: ClientCard, runtime: ClientRuntime | None = None) -> tuple[int, Start]:
    """Return the round of the last checkpoint, and what its method serves a client that it never met, with its plan.

    Args:
        run: the run.
        card: of the client.
        runtime: has the client's data, for a method that asks for its class statistics; without it there are none.

    Raises:
        RunFilesError: the run has no checkpoint, or its clients train only a core.
        StateError: it has some, and none can be used.
    """
    method, found = open_checkpoint(run)
    if found is None:
        raise RunFilesError(
            f"the run in '{run.path}' has no checkpoint: run it again with run.checkpoint-every above 0"
        )
    cards: Mapping[str, ClientCard] = {**run.require_clients().cards, card.client_id: card}
    state = with_clients(method, found.state, cards)
    plan = method.plan(state, card)
    if plan.core:
        raise RunFilesError(f"method '{run.config.method}' cannot be personalised here: its clients train only a core")
    if runtime is not None and isinstance(method, AsksStatistics):
        state = _with_own_statistics(method, state, card, runtime)
    return found.server_round, Start(served_starts(method, state, [card])[0], plan)


def _with_own_statistics(method: AsksStatistics, state: Any, card: ClientCard, runtime: ClientRuntime) -> Any:
    rank, anchor = method.statistics_rank(state), method.anchor(state)
    if rank is None or anchor is None:
        return state
    request = StatisticsRequest(card.client_id, 0, rank, Start(anchor))
    reply = describe_classes(runtime, request, NothingKept())
    return method.with_statistics(state, {card.client_id: reply.statistics})
