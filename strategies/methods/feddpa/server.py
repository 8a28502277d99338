"""FedDPA: a global adapter by FedIT and a private one of each client, mixed at use (arXiv 2403.19211, eq. 7-9).

A client trains the global adapter and its own, which never leaves it. The paper weighs each instance by its similarity
to a few local samples; here lambda is the mean of that over the client's samples
(:mod:`strategies.methods.feddpa.client`, which has the mixture).
"""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from strategies.methods.fedit import FedIT


class FedDPA(FedIT):
    """State: the averaged global adapter."""

    def plan(self, state: Adapter, card: ClientCard) -> LocalPlan:
        """Have the client keep and use an adapter of its own."""
        return LocalPlan(personal=True)


def build(config: RunConfig) -> FedDPA:
    """Return the method; its settings are the client's."""
    return FedDPA()
