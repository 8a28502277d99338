"""FedSA-LoRA at the client: the server's A with the client's own B and head (arXiv 2410.01463, algorithm 1)."""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained


class FedSALoraClient(ClientHalf):
    """Keeps the adapter it trained, of which the next start takes B and the head."""

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train on from the kept B and head."""
        trained = client.train(self.compose(client, start, plan), steps)
        client.keep(trained.end)
        return trained

    def compose(self, client: LocalClient, adapter: Adapter, plan: LocalPlan) -> Composition:
        """Return the server's A with the kept B and head; a client that kept nothing uses what it received."""
        kept = client.kept()
        return Composition(adapter if kept is None else with_kept_left(adapter, kept), plan.base)


def with_kept_left(adapter: Adapter, kept: Adapter) -> Adapter:
    """Return A of ``adapter`` with B and head of ``kept``."""
    low_rank = {kind: Factors(B=kept.low_rank[kind].B, A=factors.A) for kind, factors in adapter.low_rank.items()}
    return Adapter(low_rank, kept.head)


def build(config: RunConfig) -> FedSALoraClient:
    """Return the client half; it has no settings."""
    return FedSALoraClient()
