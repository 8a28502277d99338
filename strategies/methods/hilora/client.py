"""HiLoRA at the client: one tier is trained over the frozen lower ones, and away from them (arXiv 2603.02785).

||B_root^T B||^2 and ||B_cluster^T B||^2 are added to the loss with the weight ``hilora.penalty``. The columns of the
lower tiers' B are orthonormal; side by side they are the B of the plan's base, so one product gives both terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from models.adapters.training import Penalty
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained
from strategies.methods.hilora.config import HiLoraSettings

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel


@dataclass(frozen=True)
class HiLoraClient(ClientHalf):
    """Trains what it receives; ``penalty`` is the weight of what it shares with the base."""

    penalty: float

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received tier."""
        base = plan.base
        if base is None or not self.penalty:
            return client.train(Composition(start, base), steps)
        return client.train(Composition(start, base), steps, lambda model: overlap(model, base, self.penalty))


def overlap(model: AdaptedModel, base: Adapter, weight: float) -> Penalty:
    """Return weight * sum over modules of ||B_base^T B||_F^2 as a function of the B that ``model`` has at the time."""
    lower = {kind: factors.B.to(model.device) for kind, factors in base.low_rank.items()}

    def penalty() -> Tensor:
        shared = [
            (below.mT @ B).square().sum()
            for kind, ones in model.factor_pairs().items()
            for below, (B, _) in zip(lower[kind], ones, strict=True)
        ]
        return weight * torch.stack(shared).sum()

    return penalty


def build(config: RunConfig) -> HiLoraClient:
    """Return the client half with the weight under ``hilora``."""
    return HiLoraClient(config.of(HiLoraSettings).penalty)
