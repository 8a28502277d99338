"""What a client does when it is asked: describe its data, train a start, evaluate an adapter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from client_app.keeping import Keeper
from client_app.personal import Composition, composed
from client_app.private_release import private
from client_app.training import LocalTrainer, OptimizerSpec, TokenSet, evaluate, loss_gradient
from client_app.workplace import Workplace
from hyperlora.data.federation import DataError
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.signature import ClientCard, SignatureReply
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter, resized
from models.adapters.gradient import GradientSpec, part_vectors
from models.personalization.prior import add_prior, remove_prior
from models.personalization.signature import Signature

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel


def describe_clients(workplace: Workplace, client_ids: Sequence[str]) -> SignatureReply:
    """Return a card for every client that can take part and the reason for every one that cannot."""
    cards, left_out = [], {}
    for client_id in client_ids:
        try:
            cards.append(_card(workplace, client_id))
        except DataError as error:
            left_out[client_id] = str(error)
    return SignatureReply(cards, left_out)


def _card(workplace: Workplace, client_id: str) -> ClientCard:
    client = workplace.client(client_id)
    signature = workplace.signature(client_id)
    ranks = workplace.config.lora.client_ranks
    rank = ranks[workplace.federation.client_ids.index(client_id) % len(ranks)] if ranks else 0
    return ClientCard(client_id, client.domain, client.trains, len(client.train), signature, rank)


def train_start(workplace: Workplace, request: TrainRequest, kept: Keeper) -> TrainReply:
    """Train the received start for its local budget as its plan says.

    The validation share is never trained on; it scores the start and the result. The prior is
    added to the head's bias before and taken off after.
    """
    began, steps = time.perf_counter(), request.local_steps
    if request.plan.personal == "feddpa":
        own, metrics = _train_own_part(workplace, request, kept, steps - steps // 2)
        trained, _ = _train(workplace, request, Composition(request.start), steps // 2)
        kept.put(request.client_id, own)
    else:
        # Potara's clients train what they are sent and merge when they use it.
        plan = replace(request.plan, personal="none") if request.plan.personal == "potara" else request.plan
        composition = composed(workplace, request.client_id, request.start, plan, kept)
        trained, metrics = _train(workplace, request, composition, steps)
        if request.plan.personal != "none":
            kept.put(request.client_id, trained.end)
    reply = TrainReply(
        request.client_id,
        request.server_round,
        trained.end,
        replace(metrics, seconds=time.perf_counter() - began),
        trained.gradient,
        _changed_signature(workplace, request),
        trained.core,
        request.plan.up,
    )
    return _noised(workplace, request, reply)


def _noised(workplace: Workplace, request: TrainRequest, reply: TrainReply) -> TrainReply:
    privacy = workplace.config.privacy
    if not privacy.adapter_noise:
        return reply
    seed = workplace.noise_seed(request.client_id, request.server_round)
    return private(reply, request, clip=privacy.adapter_clip, noise=privacy.adapter_noise, seed=seed)


@dataclass(frozen=True)
class _Trained:
    """What local steps made: the adapter without its prior, the core where one was trained, the gradient asked for."""

    end: Adapter
    core: dict[str, Tensor]
    gradient: dict[str, Tensor]


def _train(
    workplace: Workplace, request: TrainRequest, composition: Composition, steps: int
) -> tuple[_Trained, TrainMetrics]:
    model, plan = workplace.model, request.plan
    frequencies, gamma = workplace.frequencies(request.client_id), workplace.config.prior_strength
    validation = workplace.tokens(request.client_id, "validation")
    model.load(add_prior(composition.adapter, frequencies, gamma))
    with model.prepared(plan.trains, plan.core, composition.base):
        start_accuracy, start_loss = evaluate(model, validation)
        gradient = _gradient(model, validation, request.wants, composition.adapter.rank)
        train_loss = _trainer(workplace, request.client_id, request.server_round, "train").run(steps)
        end_accuracy, end_loss = evaluate(model, validation)
        core = model.extract_core() if plan.trains == "core" else {}
        end = remove_prior(resized(model.extract(), composition.adapter.rank), frequencies, gamma)
    metrics = TrainMetrics(
        num_examples=len(workplace.tokens(request.client_id, "train")),
        train_loss=train_loss,
        start_loss=start_loss,
        start_accuracy=start_accuracy,
        end_loss=end_loss,
        end_accuracy=end_accuracy,
        seconds=0.0,
    )
    return _Trained(end, core, gradient), metrics


def _train_own_part(
    workplace: Workplace, request: TrainRequest, kept: Keeper, steps: int
) -> tuple[Adapter, TrainMetrics]:
    """Train the client's own part on top of the received adapter, which stays fixed."""
    composition = composed(workplace, request.client_id, request.start, request.plan, kept)
    trained, metrics = _train(workplace, request, composition, steps)
    return composition.own_part(trained.end), metrics


def _changed_signature(workplace: Workplace, request: TrainRequest) -> Signature | None:
    """Return the client's signature where it is no longer the one that the server holds."""
    signature = workplace.signature(request.client_id)
    return None if signature.digest() == request.signature_digest else signature


def _gradient(model: AdaptedModel, validation: TokenSet, wants: GradientSpec, rank: int) -> dict[str, Tensor]:
    """Return what is to be told of the validation gradient; zeros where the client has no validation share."""
    if wants.kind == "off":
        return {}
    return wants.compress(part_vectors(resized(loss_gradient(model, validation), rank)))


def evaluate_adapter(workplace: Workplace, request: EvaluateRequest, kept: Keeper) -> EvaluateReply:
    """Score the received adapter on the client's own test split after each number of local steps.

    What is trained here stays here.
    """
    began = time.perf_counter()
    model, plan = workplace.model, request.plan
    test = workplace.tokens(request.client_id, "test")
    validation = workplace.tokens(request.client_id, "validation")
    composition = composed(workplace, request.client_id, request.adapter, plan, kept)
    model.load(personal_adapter(workplace, request.client_id, composition.adapter))
    scores, made = [], 0
    with model.prepared(plan.trains, plan.core, composition.base):
        trainer = _trainer(workplace, request.client_id, request.server_round, "evaluate")
        for steps in request.steps:
            trainer.run(steps - made)
            made = steps
            scores.append((*evaluate(model, test), evaluate(model, validation)[1]))
    accuracy, loss, validation_loss = (list(column) for column in zip(*scores, strict=True))
    seconds = time.perf_counter() - began
    return EvaluateReply(request.client_id, len(test), accuracy, loss, validation_loss, seconds)


def personal_adapter(workplace: Workplace, client_id: str, adapter: Adapter) -> Adapter:
    """Return the adapter as the client uses it: with its own class prior in the head's bias."""
    return add_prior(adapter, workplace.frequencies(client_id), workplace.config.prior_strength)


def _trainer(workplace: Workplace, client_id: str, server_round: int, purpose: str) -> LocalTrainer:
    train = workplace.config.train
    return LocalTrainer(
        workplace.model,
        workplace.tokens(client_id, "train"),
        optimizer=OptimizerSpec(train.optimizer, train.learning_rate, train.weight_decay),
        batch_size=train.batch_size,
        seed=derive_seed(workplace.config.seed, client_id, server_round, purpose),
    )
