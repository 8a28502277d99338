"""What the clients' differential privacy has cost so far: an accountant over signatures and rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hyperlora.accounting import composed_epsilon
from hyperlora.config.settings import PrivacyConfig


@dataclass(frozen=True)
class PrivacyLedger:
    """Counts releases and knows what they cost.

    A release counts when it was asked for, whether or not its reply was used: it may have left the client.

    Args:
        settings: noise multipliers, delta and the budget.
    """

    settings: PrivacyConfig

    @property
    def on(self) -> bool:
        """Whether clients add noise to anything."""
        return self.settings.noised

    def epsilon(self, signatures: int, adapters: int) -> float:
        """Return the epsilon of a client that released that many of each; what has no noise is not in it."""
        own = self.settings
        parts = [(own.signature_noise, signatures), (own.adapter_noise, adapters)]
        return composed_epsilon([part for part in parts if part[0] > 0], own.delta)

    def affords(self, signatures: int, adapters: int) -> bool:
        """Tell whether so many releases stay within the budget; always where there is none."""
        return not self.settings.epsilon or self.epsilon(signatures, adapters) <= self.settings.epsilon

    def figures(self, asked: Mapping[str, int], signatures: Mapping[str, int]) -> dict[str, float]:
        """Return what the client that told most has spent; empty where no client adds noise."""
        if not self.on:
            return {}
        spent = max((self.epsilon(signatures.get(name, 1), count) for name, count in asked.items()), default=0.0)
        return {"epsilon": spent, "delta": self.settings.delta}


def participations(cohorts: Iterable[Sequence[str]]) -> dict[str, int]:
    """Return how often each client was asked to train."""
    counts: dict[str, int] = {}
    for cohort in cohorts:
        for name in cohort:
            counts[name] = counts.get(name, 0) + 1
    return counts
