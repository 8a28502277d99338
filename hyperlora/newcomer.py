"""What a run has for a client that it never met: the start made for its signature, the anchor, and how well they do.

No server runs and nothing is written: the run's last checkpoint is read, and the client's own code is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from client_app.device import choose_device, worthwhile_threads
from client_app.embedding_cache import open_embedding_cache
from client_app.noised_sums import NoisedClient
from client_app.runtime import ClientRuntime
from client_app.sums import SummedClient
from client_app.tasks import NothingKept, describe_classes, describe_clients, evaluate_adapter
from client_app.token_cache import TokenCache
from hyperlora.config.schema import RunConfig
from hyperlora.data.federation import ClientData, Federation, SingleClient
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.questions import Question
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.sums import SumRequest
from hyperlora.reporting.run_files import RunFiles, RunFilesError
from hyperlora.reporting.state_view import open_checkpoint
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter
from models.personalization.leaning import Leaning
from strategies.methods.base.server import AsksStatistics, served_starts, with_clients
from strategies.methods.hyperlora.heads import leaning_of
from strategies.methods.hyperlora.state import HyperLoraState

GENERATED, ANCHOR = "generated", "anchor"


@dataclass(frozen=True)
class Tried:
    """A start, what became of it, and the client's scores of both.

    Attributes:
        name: ``generated`` or ``anchor``.
        adapters: the adapter by the number of local steps, with the client's class prior.
        reply: the scores, for the numbers of steps in ascending order.
    """

    name: str
    adapters: Mapping[int, Adapter]
    reply: EvaluateReply

    def losses(self) -> dict[str, float]:
        """Return the validation loss by the name of the directory."""
        steps = sorted(self.adapters)
        return {adapter_name(k, self.name): loss for k, loss in zip(steps, self.reply.validation_loss, strict=True)}


@dataclass(frozen=True)
class Trial:
    """What was tried for a newcomer.

    Attributes:
        card: of the newcomer, with its signature.
        after_round: the round of the run's checkpoint.
        generated: what the method makes for the newcomer, before and after local steps.
        anchor: the same of the anchor; None for a method without one.
        use: name of the adapter with the lowest loss on the validation part.
        leaning: whose class statistics the generated head leans on; None where no head is generated.
    """

    card: ClientCard
    after_round: int
    generated: Tried
    anchor: Tried | None
    use: str
    leaning: Leaning | None = None

    @property
    def all(self) -> list[Tried]:
        """All starts."""
        return [self.generated, *([self.anchor] if self.anchor else [])]


def adapter_name(steps: int, start: str = GENERATED) -> str:
    """Return the name of the directory of an adapter after so many local steps from a start."""
    if not steps:
        return start
    return f"after-{steps}-steps" if start == GENERATED else f"{start}-after-{steps}-steps"


def newcomer_runtime(
    run: RunFiles, model: AdaptedModel, client: ClientData, *, steps: int | None = None, device: str = "auto"
) -> ClientRuntime:
    """Return what a client with these data works with, as if it had been a client of the run.

    Args:
        run: the run.
        model: its backbone with an adapter of its shape, which the runtime takes over.
        client: the newcomer's data.
        steps: local steps K; those of the run by default.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    steps = run.config.train.steps_of_use if steps is None else steps
    config = run.config.with_values({"train.adapt-steps": steps, "train.device": device})
    federation = SingleClient(client.client_id, lambda: client, tuple(run.require_clients().class_names))
    return local_runtime(config, model, federation)


def local_runtime(config: RunConfig, model: AdaptedModel, federation: Federation) -> ClientRuntime:
    """Return what the clients of ``federation`` work with in this process, which ``model`` is taken over by."""
    model.to(choose_device(config.train.device), half=config.train.precision == "bfloat16")
    torch.set_num_threads(worthwhile_threads(model.backbone, config.train.batch_size))
    embedded = open_embedding_cache(config.train.embedding_cache_mb)
    cache = TokenCache(model, federation, config.train.prefix_cache_mb * 2**20, embedded=embedded)
    return ClientRuntime(config, model, federation, cache, at_site=False)


def try_newcomer(run: RunFiles, runtime: ClientRuntime) -> Trial:
    """Describe the one client of ``runtime``, make its start, and score that and the anchor.

    The local steps are made from the generated start; from the anchor as well where it has the lower validation loss.

    Raises:
        RunFilesError: the client's samples cannot be described, or the run has nothing for it.
        StateError: the run's checkpoints cannot be used.
    """
    (client_id,) = runtime.federation.client_ids
    described = describe_clients(runtime, [client_id])
    if described.left_out:
        raise RunFilesError(described.left_out[client_id])
    card, steps = _known_to_itself(described.cards[0], runtime), runtime.config.train.steps_of_use
    served = serve(run, card, runtime)
    after_round, start = served.after_round, served.start
    generated = _try_start(runtime, GENERATED, after_round, start, steps)
    shared = anchor_of(run)
    anchor = None
    if shared is not None:
        beside = replace(start, adapter=shared)
        anchor = _try_start(runtime, ANCHOR, after_round, beside, 0)
        if steps and anchor.reply.validation_loss[0] < generated.reply.validation_loss[0]:
            anchor = _try_start(runtime, ANCHOR, after_round, beside, steps)
    losses = generated.losses() | (anchor.losses() if anchor else {})
    chosen = min(losses, key=losses.__getitem__) if len(runtime.client(client_id).validation) else GENERATED
    return Trial(card, after_round, generated, anchor, chosen, served.leaning)


def _known_to_itself(card: ClientCard, runtime: ClientRuntime) -> ClientCard:
    """Return the card with what a client of a run of sums keeps to itself; nothing of a newcomer leaves its machine."""
    if runtime.config.privacy.mode == "open":
        return card
    own = len(runtime.client(card.client_id).train)
    return replace(card, num_examples=own, signature=runtime.signature(card.client_id))


def _try_start(runtime: ClientRuntime, name: str, after_round: int, start: Start, steps: int) -> Tried:
    """Score a start before and after the local steps, which begin anew."""
    (client_id,) = runtime.federation.client_ids
    request = EvaluateRequest(client_id, after_round, sorted({0, steps}), start)
    reply = evaluate_adapter(runtime, request, NothingKept())
    trained = Start(runtime.model.extract(), start.plan).whole()
    ends = {0: runtime.with_prior(client_id, start.whole())}
    return Tried(name, {steps: trained, **ends}, reply)


def anchor_of(run: RunFiles) -> Adapter | None:
    """Return the adapter that all clients share after the last checkpoint; None where the method has none."""
    method, found = open_checkpoint(run)
    return None if found is None else method.anchor(found.state)


@dataclass(frozen=True)
class Served:
    """What a run's method serves a client that it never met.

    Attributes:
        after_round: the round of the run's checkpoint.
        start: the adapter with its plan.
        leaning: whose class statistics its head leans on; None where no head is generated.
    """

    after_round: int
    start: Start
    leaning: Leaning | None


def start_for(run: RunFiles, card: ClientCard) -> tuple[int, Start]:
    """Return the round of the last checkpoint, and what its method serves a client of which only the card is known.

    Raises:
        RunFilesError, StateError: as :func:`serve`.
    """
    served = serve(run, card)
    return served.after_round, served.start


def serve(run: RunFiles, card: ClientCard, runtime: ClientRuntime | None = None) -> Served:
    """Return what the method of a run, as of its last checkpoint, serves a client that it never met.

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
    if run.config.privacy.mode == "sums":
        return Served(found.server_round, Start(_made_by_itself(run, found.state, card.client_id, runtime)), None)
    cards: Mapping[str, ClientCard] = {**run.require_clients().cards, card.client_id: card}
    state = with_clients(method, found.state, cards)
    plan = method.plan(state, card)
    if plan.core:
        raise RunFilesError(f"method '{run.config.method}' cannot be personalised here: its clients train only a core")
    if runtime is not None and isinstance(method, AsksStatistics):
        state = _with_own_statistics(method, state, card, runtime)
    start = Start(served_starts(method, state, [card])[0], plan)
    leans = leaning_of(state, card) if isinstance(state, HyperLoraState) else None
    return Served(found.server_round, start, leans)


def _made_by_itself(run: RunFiles, state: Any, client_id: str, runtime: ClientRuntime | None) -> Adapter:
    """Return what a newcomer makes for itself of what a run of sums published, as its unseen clients do."""
    if runtime is None:
        raise RunFilesError(f"the run in '{run.path}' is one of sums: a head is made of samples, and there are none")
    if not isinstance(state, HyperLoraState) or not state.published:
        raise RunFilesError(
            f"the run in '{run.path}' is one of sums, and its last evaluation had none: there is the anchor alone, "
            "in adapters/anchor, and nothing to make a head of"
        )
    request = SumRequest(client_id, 0, "", "masked")
    if run.config.privacy.noised_sums:
        asked = Question("noised scores", state.published, noise=1.0)
        return NoisedClient(runtime, request, NothingKept()).own_start(asked)
    return SummedClient(runtime, request, NothingKept()).own_start(Question("scores", state.published))


def _with_own_statistics(method: AsksStatistics, state: Any, card: ClientCard, runtime: ClientRuntime) -> Any:
    rank, anchor = method.statistics_rank(state), method.anchor(state)
    if rank is None or anchor is None or runtime.tokens(card.client_id, "train").labels.ndim != 1:
        return state
    request = StatisticsRequest(card.client_id, 0, rank, Start(anchor))
    reply = describe_classes(runtime, request, NothingKept())
    return method.with_statistics(state, {card.client_id: reply.statistics})
