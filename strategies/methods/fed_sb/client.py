"""Fed-SB at the client: in round 1 the head is trained and the gradient of the frozen weights is told."""

from __future__ import annotations

from dataclasses import replace

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from models.adapters.weight_gradient import packed, weight_gradient
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained


class FedSBClient(ClientHalf):
    """Trains as the plan says and adds the gradient where the plan asks for it."""

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train; the gradient is that of the training loss after the local steps, the class prior in the head."""
        trained = client.train(Composition(start, plan.base), steps)
        if not plan.gradient_rank:
            return trained
        client.model.load(client.with_prior(trained.end))
        gradient = weight_gradient(client.model, client.tokens("train"))
        return replace(trained, gradient=packed(gradient, plan.gradient_rank))


def build(config: RunConfig) -> FedSBClient:
    """Return the client half; it has no settings."""
    return FedSBClient()
