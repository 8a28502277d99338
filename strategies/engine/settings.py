"""How rounds are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hyperlora.config.settings import PrivacyConfig
from strategies.engine.screening import Screen


@dataclass(frozen=True)
class RoundSettings:
    """Cohort, budget, deadlines and defences of a run; seconds where a time is meant."""

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
