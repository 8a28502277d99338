"""How rounds are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hyperlora.config.schema import RunConfig
from hyperlora.config.settings import PrivacyConfig
from strategies.engine.screening import Screen


@dataclass(frozen=True)
class RoundSettings:
    """Cohort, budget, deadlines and defences of a run.

    Attributes:
        start: ``random``, or ``eva`` where the clients' inputs make the adapter before round 1.
        head_start: ``zeros``, or ``classes`` where the clients' classes make the head before round 1.
        tells_sensitivity: whether clients tell what the loss depends on each module.
        num_rounds: rounds of the run; the last one is evaluated most thoroughly.
        clients_per_round: clients of a cohort.
        local_steps: optimiser steps of a client in a round.
        evaluate_steps: numbers of local steps after which an evaluation scores.
        evaluate_every: rounds between evaluations.
        evaluate_clients: clients that an evaluation before the last one asks; 0 is all.
        domain_rounds: rounds that the clients of one domain train before those of the next; 0 draws from all.
        seed: of the cohorts.
        min_clients: clients to wait for before round 1.
        join_timeout: seconds to wait for them.
        round_timeout: seconds after which a missing reply is given up.
        wire: number format of adapters in messages.
        screen: which updates are believed, and how far.
        min_replies: usable replies without which a round changes nothing.
        replies_per_round: replies after which a round goes on; 0 waits for all.
        privacy: noise, clipping and budget of the clients.
        digest: of the run's settings, as clients have it.
    """

    clients_per_round: int
    local_steps: int
    evaluate_steps: Sequence[int]
    evaluate_every: int
    seed: int
    min_clients: int
    join_timeout: float
    round_timeout: float
    wire: str = "float32"
    screen: Screen = field(default_factory=Screen)
    min_replies: int = 1
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    num_rounds: int = 0
    start: str = "random"
    head_start: str = "zeros"
    tells_sensitivity: bool = False
    evaluate_clients: int = 0
    replies_per_round: int = 0
    domain_rounds: int = 0
    digest: str = ""

    @classmethod
    def of(cls, config: RunConfig, *, min_clients: int) -> RoundSettings:
        """Return what the configuration says; ``min_clients`` are waited for before round 1."""
        federation = config.federation
        return cls(
            clients_per_round=federation.clients_per_round,
            local_steps=config.train.local_steps,
            evaluate_steps=config.evaluation_steps,
            evaluate_every=federation.evaluate_every,
            seed=config.seed,
            min_clients=min_clients,
            join_timeout=federation.join_timeout,
            round_timeout=federation.round_timeout,
            wire=config.wire.dtype,
            screen=Screen(**config.defence.model_dump()),
            min_replies=federation.min_replies,
            privacy=config.privacy,
            num_rounds=federation.rounds,
            start=config.lora.start,
            head_start=config.lora.head_start,
            evaluate_clients=federation.evaluate_clients,
            replies_per_round=federation.replies_per_round,
            tells_sensitivity=config.lora.importance == "sensitivity",
            domain_rounds=federation.domain_rounds,
            digest=config.digest(),
        )
