"""HyperLoRA at the client: plain training; with ``hyperlora.merge-own`` the start is merged with the client's last end.

The merge at use is Potara's (:mod:`strategies.methods.potara.client`); what is kept is what the received start became.
"""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained
from strategies.methods.hyperlora.config import HyperLoraSettings
from strategies.methods.potara.client import MergingClient


class KeepsLastEnd(MergingClient):
    """Trains what it receives and keeps the result."""

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received adapter and keep what it became."""
        trained = client.train(Composition(start, plan.base), steps)
        client.keep(trained.end)
        return trained


def build(config: RunConfig) -> ClientHalf:
    """Return the client half that the settings ask for."""
    return KeepsLastEnd() if config.of(HyperLoraSettings).merge_own else ClientHalf()
