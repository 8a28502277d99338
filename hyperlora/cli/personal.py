"""An adapter for data that no client of a run had: signature, generated start, local steps, scores. No server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from client_app.keeping import NothingKept
from client_app.tasks import describe_clients, evaluate_adapter, personal_adapter
from client_app.workplace import TokenCache, Workplace, choose_device, worthwhile_threads
from hyperlora.cli.output import CommandError
from hyperlora.cli.run_model import rebuild_model
from hyperlora.data.federation import ClientData, DataError
from hyperlora.data.image_folder import read_image_folder
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import LocalPlan, whole
from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.run_files import RunFiles
from models.adapters.adapter import Adapter
from models.backbones.transforms import ImageTransform
from strategies.engine.checkpoint import CheckpointStore
from strategies.methods.registry import build_method


@dataclass(frozen=True)
class Wishes:
    """What a person asks for: the name of the new client, local steps, device, and the backbone's weights."""

    name: str
    steps: int | None
    device: str
    weights: Path | None


@dataclass(frozen=True)
class Outcome:
    """What came of it; accuracies are shares of the held-out test part, losses means over its validation part.

    Attributes:
        num_train, num_validation, num_test: images in each part.
        after_round: the round of the run's checkpoint.
        steps: numbers of local steps that were scored: 0, or 0 and K.
        accuracy, validation_loss: one for each of them.
    """

    num_train: int
    num_validation: int
    num_test: int
    after_round: int
    steps: Sequence[int]
    accuracy: Sequence[float]
    validation_loss: Sequence[float]

    def as_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return asdict(self)


@dataclass(frozen=True)
class OneClient:
    """A federation of one client: the person's own data."""

    data: ClientData
    class_names: tuple[str, ...]

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The one client-id."""
        return (self.data.client_id,)

    def load(self, client_id: str) -> ClientData:
        """Return its data; raises DataError for another client-id."""
        if client_id != self.data.client_id:
            raise DataError(f"there is no client '{client_id}' here")
        return self.data


def personalised(run: RunFiles, folder: Path, wishes: Wishes, target: Path) -> Outcome:
    """Write the adapters for the images in ``folder`` as PEFT directories below ``target``, and return their scores.

    ``target/generated`` is what the run's method makes for the signature alone; ``target/after-<K>-steps`` is that
    after K local steps.

    Raises:
        CommandError, DataError, BackboneError, AdapterError, StateError: it cannot be done; one sentence.
    """
    workplace = open_own_workplace(run, folder, wishes)
    card = describe_clients(workplace, [wishes.name])
    if card.left_out:
        raise CommandError(card.left_out[wishes.name])
    after_round, start, plan = start_for(run, card.cards[0])
    config, model = workplace.config, workplace.model
    steps = sorted({0, config.train.local_steps})
    request = EvaluateRequest(wishes.name, after_round, steps, start, plan=plan)
    reply = evaluate_adapter(workplace, request, NothingKept())
    trained = whole(model.extract(), plan)
    model.save(personal_adapter(workplace, wishes.name, whole(start, plan)), target / "generated")
    if steps[-1]:
        model.save(trained, target / f"after-{steps[-1]}-steps")
    data = workplace.client(wishes.name)
    parts = (len(data.train), len(data.validation), len(data.test))
    return Outcome(*parts, after_round, steps, reply.test_accuracy, reply.validation_loss)


def open_own_workplace(run: RunFiles, folder: Path, wishes: Wishes) -> Workplace:
    """Return a workplace with the run's backbone and the images in ``folder`` as its only client.

    Raises:
        CommandError, DataError, BackboneError: one of them cannot be used.
    """
    known = run.require_clients()
    if wishes.name in known.cards:
        raise CommandError(f"the run has a client '{wishes.name}' already: choose another name with --name")
    model = rebuild_model(run, wishes.weights)
    transform = model.backbone.transform
    if not isinstance(transform, ImageTransform):
        raise CommandError(f"'{model.backbone.name}' takes no images, and personalize reads a folder of images")
    steps = run.config.train.local_steps if wishes.steps is None else wishes.steps
    config = run.config.with_values({"train.local-steps": steps, "train.device": wishes.device})
    client = read_image_folder(
        folder,
        wishes.name,
        known.class_names,
        image_size=transform.size,
        channels=transform.channels,
        validation_fraction=config.data.validation_fraction,
        test_fraction=config.data.test_fraction,
    )
    federation = OneClient(client, tuple(known.class_names))
    model.to(choose_device(wishes.device))
    torch.set_num_threads(worthwhile_threads(model.backbone, config.train.batch_size))
    cache = TokenCache(model, federation, limit=config.train.prefix_cache_mb * 2**20)
    return Workplace(config, model, federation, cache)


def start_for(run: RunFiles, card: ClientCard) -> tuple[int, Adapter, LocalPlan]:
    """Return the round of the last checkpoint, and the start and plan of its method for a client that it never met.

    Raises:
        CommandError: the run has no checkpoint, or its method trains nothing but a core.
        StateError: it has some, and none can be used.
    """
    method = build_method(run.config.with_values({"hyperlora.memory-limit": 0}))
    found = CheckpointStore(run.path / "checkpoints", keep=1).latest(method.state_classes)
    if found is None:
        raise CommandError(f"the run in '{run.path}' has no checkpoint: run it again with run.checkpoint-every above 0")
    cards: Mapping[str, ClientCard] = {**run.require_clients().cards, card.client_id: card}
    state = method.register(found.state, cards)
    plan = method.plan(state, card)
    if plan.core:
        raise CommandError(f"method '{run.config.method}' cannot be personalised here: its clients train a core alone")
    return found.server_round, method.start(state, card), plan
