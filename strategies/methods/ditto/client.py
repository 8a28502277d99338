"""Ditto at the client: v <- v - eta (grad F(v) + lambda (v - theta)) with the received theta (arXiv 2012.04221).

Algorithm 1: the global adapter is trained from theta and sent back, the personal one from where it was. Each has the
whole local budget, so a client makes twice the steps of FedIT's. Distances are those of A, B and head, as the paper
takes those of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from models.adapters.training import Penalty
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained
from strategies.methods.ditto.config import DittoSettings

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel


@dataclass(frozen=True)
class DittoClient(ClientHalf):
    """Keeps the personal adapter; ``pull`` is lambda."""

    pull: float

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received adapter, which is sent back, and the personal one, whose figures are told."""
        shared = client.train(Composition(start, plan.base), steps)
        client.model.load(client.with_prior(start))
        received = snapshot(client.model)
        personal = client.train(
            self.compose(client, start, plan), steps, lambda model: pull_towards(model, received, self.pull)
        )
        client.keep(personal.end)
        return replace(shared, metrics=personal.metrics)

    def compose(self, client: LocalClient, adapter: Adapter, plan: LocalPlan) -> Composition:
        """Return the personal adapter; a client that has none uses what it received."""
        return Composition(client.kept() or adapter, plan.base)


def snapshot(model: AdaptedModel) -> list[Tensor]:
    """Return copies of the parameters that ``model`` trains."""
    return [parameter.detach().clone() for parameter in model.trainable_parameters()]


def pull_towards(model: AdaptedModel, reference: Sequence[Tensor], weight: float) -> Penalty:
    """Return weight / 2 ||v - reference||^2 as a function of the parameters that ``model`` carries at the time."""

    def penalty() -> Tensor:
        pairs = zip(model.trainable_parameters(), reference, strict=True)
        return weight / 2 * torch.stack([(now - then).square().sum() for now, then in pairs]).sum()

    return penalty


def build(config: RunConfig) -> DittoClient:
    """Return the client half with the weight under ``ditto``."""
    return DittoClient(config.of(DittoSettings).pull)
