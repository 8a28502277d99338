"""Methods in closed form at the client: nothing is trained in a round."""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained


class DescribedClient(ClientHalf):
    """Measures what it receives and makes no step; its class statistics are asked for by a message of their own."""

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Return the received adapter as it is."""
        return client.train(Composition(start, plan.base), 0)


def build(config: RunConfig) -> DescribedClient:
    """Return the client half; it has no settings."""
    return DescribedClient()
