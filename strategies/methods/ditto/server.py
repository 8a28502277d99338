"""Ditto: a global adapter by FedIT, and a personal one of each client near it (arXiv 2012.04221, algorithm 1).

v_i = argmin F_i(v) + lambda / 2 ||v - theta||^2 is followed at the client (:mod:`strategies.methods.ditto.client`), by
as many steps as the global adapter gets; it never leaves the client. A client that never trained uses theta.
"""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from strategies.methods.fedit import FedIT


class Ditto(FedIT):
    """State: the averaged global adapter."""

    def plan(self, state: Adapter, card: ClientCard) -> LocalPlan:
        """Have the client keep and use an adapter of its own."""
        return LocalPlan(personal=True)


def build(config: RunConfig) -> Ditto:
    """Return the method; its settings are its clients'."""
    return Ditto()
