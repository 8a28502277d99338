"""The client half of FedProx-LoRA: mu / 2 ||theta - theta_start||^2 is added to the loss (arXiv 1812.06127, eq. 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprox_lora.config import FedProxSettings
from hyperlora import AdaptedModel, Adapter, RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.training import Penalty
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained


@dataclass
class FedProxClient(ClientHalf):
    """Trains with a proximal term of weight ``mu``."""

    mu: float

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received start, held near itself."""
        return client.train(Composition(start, plan.base), steps, self.proximal_term)

    def proximal_term(self, model: AdaptedModel) -> Penalty:
        """Return the term for a model that carries the start."""
        start = [parameter.detach().clone() for parameter in model.trainable_parameters()]

        def term() -> Tensor:
            moved = zip(model.trainable_parameters(), start, strict=True)
            return self.mu / 2 * torch.stack([(now - before).square().sum() for now, before in moved]).sum()

        return term


def build(config: RunConfig) -> FedProxClient:
    """Return the client half with the weight that the configuration says."""
    return FedProxClient(config.of(FedProxSettings).mu)
