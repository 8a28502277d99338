"""What a client does when it is asked: describe its data and its classes, train a start, evaluate an adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from client_app.privacy import private
from client_app.runtime import HIDDEN_EXAMPLES, ClientRuntime
from client_app.token_cache import PREFIX_BATCH
from hyperlora.data.federation import DataError
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.inputs import InputsReply, InputsRequest
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard, SignatureReply
from hyperlora.messages.statistics import StatisticsReply, StatisticsRequest
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter, Core, resized
from models.adapters.input_moments import input_moments
from models.adapters.optimizers import OptimizerSpec
from models.adapters.sensitivity import SensitivityMeter
from models.adapters.training import LocalTrainer, Scores, TokenSet, evaluate, evaluate_samples, hits_by_class
from models.personalization.class_statistics import compute_class_statistics
from models.personalization.prior import add_prior, remove_prior
from models.personalization.signature import Signature
from strategies.methods.base.client import Composition, MakePenalty, Trained

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel


class Keeper(Protocol):
    """Where the clients of a node keep one adapter each between messages."""

    def get(self, client_id: str) -> Adapter | None:
        """Return what the client kept, or None."""

    def put(self, client_id: str, adapter: Adapter) -> None:
        """Keep ``adapter`` in place of what the client kept before."""


class NothingKept:
    """A keeper that forgets: for clients that serve one message only."""

    def get(self, client_id: str) -> None:
        """Return None."""
        return

    def put(self, client_id: str, adapter: Adapter) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class HostedClient:
    """One client of this process while it answers a request (:class:`strategies.methods.base.client.LocalClient`)."""

    runtime: ClientRuntime
    client_id: str
    server_round: int
    plan: LocalPlan
    keeper: Keeper
    meter: SensitivityMeter | None = None

    @property
    def model(self) -> AdaptedModel:
        """The model of this process."""
        return self.runtime.model

    def tokens(self, split: str) -> TokenSet:
        """Return the samples of ``train``, ``validation`` or ``test`` behind the frozen prefix."""
        return self.runtime.tokens(self.client_id, split)

    def with_prior(self, adapter: Adapter) -> Adapter:
        """Return the adapter with the client's class prior in the bias of the head."""
        return add_prior(adapter, self.runtime.frequencies(self.client_id), self.runtime.config.prior_strength)

    def kept(self) -> Adapter | None:
        """Return the adapter that the client kept last, or None."""
        return self.keeper.get(self.client_id)

    def keep(self, adapter: Adapter) -> None:
        """Keep ``adapter`` in place of the one before."""
        self.keeper.put(self.client_id, adapter)

    def used(self, adapter: Adapter) -> Composition:
        """Return what the client uses in place of a received adapter."""
        if self.plan.personal:
            return self.runtime.client_half.compose(self, adapter, self.plan)
        return Composition(adapter, self.plan.base)

    def trainer(
        self, purpose: str, learning_rate: float, make_penalty: MakePenalty | None = None, *, rank: int = 0
    ) -> LocalTrainer:
        """Return a fresh trainer of the loaded model, whose batches follow from client, round and purpose."""
        train = self.runtime.config.train
        return LocalTrainer(
            self.model,
            self.tokens("train"),
            optimizer=OptimizerSpec(train.optimizer, learning_rate, train.weight_decay, train.lora_plus_ratio),
            batch_size=train.batch_size,
            seed=derive_seed(self.runtime.config.seed, self.client_id, self.server_round, purpose),
            nested=self.runtime.config.lora.nested,
            penalty=make_penalty(self.model) if make_penalty else None,
            meter=self.meter,
            rank=rank,
        )

    def train(
        self, composition: Composition, steps: int, make_penalty: MakePenalty | None = None, *, trains: str = ""
    ) -> Trained:
        """Train ``composition`` as the plan says, or only the part that ``trains`` names.

        The validation share is never trained on; it scores the start and the result. The class prior is added to the
        bias of the head before training and taken off afterwards.
        """
        model, plan, validation = self.model, self.plan, self.tokens("validation")
        learning_rate = self.runtime.config.train.learning_rate
        rank = composition.adapter.rank
        model.load(self.with_prior(composition.adapter))
        with model.prepared(trains or plan.trains, core_of(plan), composition.base):
            start_accuracy, start_loss = evaluate(model, validation)
            train_loss = self.trainer("train", learning_rate, make_penalty, rank=rank).run(steps)
            end_accuracy, end_loss = evaluate(model, validation)
            core = model.extract_core() if plan.trains == "core" else {}
        end = resized(model.extract(), rank)
        end = remove_prior(end, self.runtime.frequencies(self.client_id), self.runtime.config.prior_strength)
        count = len(self.tokens("train"))
        metrics = TrainMetrics(count, train_loss, start_loss, start_accuracy, end_loss, end_accuracy, seconds=0.0)
        return Trained(end, metrics, core)


def core_of(plan: LocalPlan) -> Core | None:
    """Return the core that a client trains and its frame; None where it trains no core."""
    return None if plan.frame is None else Core(plan.frame, plan.core)


def describe_clients(runtime: ClientRuntime, client_ids: Sequence[str]) -> SignatureReply:
    """Return a card for every client that can take part, and the reason for every one that cannot."""
    cards, left_out = [], {}
    for client_id in client_ids:
        try:
            cards.append(_card(runtime, client_id))
        except DataError as error:
            left_out[client_id] = str(error)
    return SignatureReply(cards, left_out)


def _card(runtime: ClientRuntime, client_id: str) -> ClientCard:
    client = runtime.client(client_id)
    if runtime.config.privacy.mode == "sums":
        return uninformative_card(
            client_id, client.trains, runtime.model.backbone.embed_dim, len(runtime.federation.class_names)
        )
    signature = runtime.signature(client_id)
    lora, place = runtime.config.lora, runtime.federation.client_ids.index(client_id)
    rank, most_bytes = in_turn(lora.client_ranks, place), in_turn(lora.client_budgets, place)
    told = runtime.reported_examples(client_id)
    return ClientCard(client_id, client.domain, client.trains, told, signature, rank, most_bytes)


def uninformative_card(client_id: str, trains: bool, width: int, classes: int) -> ClientCard:
    """Return the card of a client that tells nothing of its data: the same for all but for the name."""
    flat = torch.full((classes,), 1 / classes)
    signature = Signature(torch.zeros(width), torch.zeros(width), flat, math.log(HIDDEN_EXAMPLES))
    return ClientCard(client_id, "", trains, HIDDEN_EXAMPLES, signature)


def in_turn(values: Sequence[int], place: int) -> int:
    """Return the value of the client at index ``place`` when ``values`` are assigned in turn; 0 if there are none."""
    return values[place % len(values)] if values else 0


def describe_classes(runtime: ClientRuntime, request: StatisticsRequest, keeper: Keeper) -> StatisticsReply:
    """Return the class statistics of the client's training samples, in the feature space of the received adapter.

    Raises:
        ProtocolError: nothing of the kind may leave in a private run, or the samples have no class each.
    """
    plan = request.start.plan
    if runtime.config.privacy.noised:
        raise ProtocolError("the run is private, and class statistics carry no noise: they stay at the client")
    client = HostedClient(runtime, request.client_id, request.server_round, plan, keeper)
    train, model = client.tokens("train"), runtime.model
    if train.labels.ndim != 1:
        raise ProtocolError("class statistics need one class for each sample, which a language model does not have")
    composition = client.used(request.start.adapter)
    model.load(composition.adapter)
    with model.prepared(plan.trains, core_of(plan), composition.base):
        features = [model.features(train.tokens[batch].to(model.device)).cpu() for batch in train.batches()]
    classes = len(request.start.adapter.head)
    statistics = compute_class_statistics(torch.cat(features), train.labels, num_classes=classes, rank=request.rank)
    return StatisticsReply(request.client_id, statistics)


def describe_inputs(runtime: ClientRuntime, request: InputsRequest) -> InputsReply:
    """Return the moments of what the adapted modules read of the samples that a signature is made of.

    Raises:
        ProtocolError: nothing of the kind may leave in a private run.
    """
    if runtime.config.privacy.noised:
        raise ProtocolError("the run is private, and moments of inputs carry no noise: they stay at the client")
    tokens = runtime.tokens(request.client_id, "train").tokens[: runtime.config.signature.max_samples]
    return InputsReply(request.client_id, input_moments(runtime.model, torch.split(tokens, PREFIX_BATCH), request.rank))


def train_start(runtime: ClientRuntime, request: TrainRequest, keeper: Keeper) -> TrainReply:
    """Train the received start for its local budget, as the client half of the method does it.

    Returns:
        What may leave the client: with noise where the configuration asks for it.

    Raises:
        ProtocolError: it is asked for what may not leave in a private run.
    """
    if request.tells_sensitivity and runtime.config.privacy.noised:
        raise ProtocolError("the run is private, and sensitivities of the loss carry no noise: they stay at the client")
    began, plan = time.perf_counter(), request.start.plan
    meter = SensitivityMeter() if request.tells_sensitivity else None
    client = HostedClient(runtime, request.client_id, request.server_round, plan, keeper, meter)
    changed = _changed_signature(runtime, request)
    trained = runtime.client_half.train(client, request.start.adapter, plan, request.local_steps)
    reply = TrainReply(
        request.client_id,
        request.server_round,
        trained.end,
        replace(
            trained.metrics,
            num_examples=runtime.reported_examples(request.client_id),
            seconds=time.perf_counter() - began,
        ),
        trained.gradient,
        changed,
        trained.core,
        plan.up,
        meter.by_module() if meter else {},
    )
    return _noised(runtime, request, reply)


def _changed_signature(runtime: ClientRuntime, request: TrainRequest) -> Signature | None:
    """Return the client's signature where it is no longer the one that the server holds."""
    signature = runtime.signature(request.client_id)
    return None if signature.digest() == request.signature_digest else signature


def _noised(runtime: ClientRuntime, request: TrainRequest, reply: TrainReply) -> TrainReply:
    privacy = runtime.config.privacy
    if not privacy.adapter_noise:
        return reply
    draw = runtime.noise(request.client_id, request.server_round)
    return private(
        reply,
        request,
        clip=privacy.adapter_clip,
        noise=privacy.adapter_noise,
        draw=draw,
        keeps_scores=privacy.keeps_scores,
    )


def evaluate_adapter(runtime: ClientRuntime, request: EvaluateRequest, keeper: Keeper) -> EvaluateReply:
    """Score the received adapter on the client's test and validation splits after each number of local steps.

    The adapters trained here are not sent. If the client keeps its scores private, nothing is computed and the reply
    has none. If only the validation split is asked for, the reply covers no test samples.
    """
    if runtime.config.privacy.keeps_scores:
        return EvaluateReply.without_scores(request)
    began, plan = time.perf_counter(), request.start.plan
    client = HostedClient(runtime, request.client_id, request.server_round, plan, keeper)
    model, validation = runtime.model, client.tokens("validation")
    test = validation.first(0) if request.validation_only else client.tokens("test")
    composition = client.used(request.start.adapter)
    model.load(client.with_prior(composition.adapter))
    scores, validation_losses, made = list[Scores](), list[float](), 0
    with model.prepared(plan.trains, core_of(plan), composition.base):
        trainer = client.trainer("evaluate", runtime.config.train.rate_of_use, rank=composition.adapter.rank)
        for steps in request.steps:
            trainer.run(steps - made)
            made = steps
            scores.append(evaluate_samples(model, test))
            validation_losses.append(evaluate(model, validation)[1])
    tells_classes = test.labels.ndim == 1 and not runtime.config.privacy.noised
    return EvaluateReply(
        request.client_id,
        len(test),
        [one.accuracy for one in scores],
        [one.loss for one in scores],
        validation_losses,
        [one.calibration_error for one in scores],
        time.perf_counter() - began,
        *(hits_by_class(test, scores[0], len(request.start.adapter.head)) if tells_classes and len(test) else ()),
    )
