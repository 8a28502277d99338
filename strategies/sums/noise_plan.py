"""Noise multipliers of all sums of a run, such that a client that takes part as often as possible spends its epsilon.

Gaussian mechanisms with multipliers z_j compose to a single one with 1/z^2 = sum 1/z_j^2 (:mod:`hyperlora.accounting`).
The budget is therefore a total precision 1/z^2, and each kind of sum gets a share of it. No amplification by
subsampling is claimed: the server knows whom it asked, and epsilon has to hold against the server as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from hyperlora.accounting import composed_epsilon

MOVEMENT = "movement"
SHARES: Mapping[str, float] = {
    MOVEMENT: 0.94,
    "noised scores": 0.06,
}
"""Kind of question -> share of the budget for all its sums; the movements of both factors count as one kind."""


@functools.lru_cache(maxsize=64)
def precision_of(epsilon: float, delta: float) -> float:
    """Return 1/z^2 of the Gaussian mechanism that costs ``epsilon`` at ``delta``."""
    low, high = 5e-3, 1e4
    for _ in range(60):
        noise = math.sqrt(low * high)
        low, high = (noise, high) if composed_epsilon([(noise, 1)], delta) > epsilon else (low, noise)
    return 1 / high**2


@dataclass(frozen=True)
class NoisePlan:
    """The noise of a run.

    Attributes:
        epsilon, delta: of a client over the whole run.
        rounds: of the run.
        evaluations: of the run.
        cohort: clients of a round.
        clients: that train.
    """

    epsilon: float
    delta: float
    rounds: int
    evaluations: int
    cohort: int
    clients: int

    def times(self, kind: str) -> int:
        """Return how often a client is asked a question at most."""
        return max(1, self._times_after(self.rounds, self.evaluations)[kind])

    def noise(self, kind: str) -> float:
        """Return the noise multiplier of a kind of question."""
        kind = MOVEMENT if kind.startswith(MOVEMENT) else kind
        return math.sqrt(self.times(kind) / (SHARES[kind] * precision_of(self.epsilon, self.delta)))

    def spent(self, rounds: int, evaluations: int) -> float:
        """Return the epsilon at most of a client after so many rounds and evaluations."""
        made = self._times_after(rounds, evaluations)
        return composed_epsilon([(self.noise(kind), times) for kind, times in made.items() if times], self.delta)

    def _times_after(self, rounds: int, evaluations: int) -> dict[str, int]:
        trained = math.ceil(rounds * min(self.cohort, self.clients) / self.clients)
        return {kind: trained if kind == MOVEMENT else evaluations for kind in SHARES}
