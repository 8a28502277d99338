"""Potara: a client merges the federated adapter with a locally fine-tuned one when it uses it (arXiv 2602.18658).

theta = lambda theta_fed + (1 - lambda) theta_loc with lambda = (b - c) / (a + b - 2c), a = tr Var(fed),
b = tr Var(loc), c = tr Cov from diagonal Fisher estimates (``client.py``). Training is FedIT's.
"""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from strategies.methods.fedit import FedIT


class Potara(FedIT):
    """State: the averaged federated adapter."""

    def plan(self, state: Adapter, card: ClientCard) -> LocalPlan:
        """Have the client keep the adapter that it trains by itself and merge it at use."""
        return LocalPlan(personal=True)


def build(config: RunConfig) -> Potara:
    """Return the method; its settings are the client's."""
    return Potara()
