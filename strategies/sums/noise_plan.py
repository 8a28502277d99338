"""How much noise every sum of a run gets, so that a client that is in all it may be in spends its epsilon and no more.

Gaussian mechanisms of multipliers z_j together are one of 1/z^2 = sum 1/z_j^2 (:mod:`hyperlora.accounting`): a budget
is a sum of precisions 1/z^2, and what each kind of sum gets of it is a share. Nothing is counted for the chance that a
client is not in a cohort: the server knows whom it asked, and epsilon is to hold against the server too.
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
"""Of the budget, by kind of question, movements of both factors being one: for all times that a client is asked it."""


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
