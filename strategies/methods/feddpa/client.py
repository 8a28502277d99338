"""FedDPA at the client: a private adapter beside the global one, mixed at use (arXiv 2403.19211, eq. 7-9).

y = W_0 x + (1 - lambda) dW_global x + dW_private x. Each of the two adapters is trained for the whole local budget, as
in the authors' code, so a client makes twice the steps of other methods; ``feddpa.budget = equal`` shares the budget
out between them. The paper weighs each test instance by its similarity to S = 5 local samples; lambda here is the mean
of that over samples of the client's own distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained, steps_of_both
from strategies.methods.feddpa.config import FedDPASettings

REFERENCE_SAMPLES = 5


@dataclass(frozen=True)
class Mixed(Composition):
    """A private adapter over a fixed share of the global one; ``fixed_head`` is that share of the head."""

    fixed_head: Tensor | None = None

    def private(self, end: Adapter) -> Adapter:
        """Return the private part of an adapter that was trained from this composition."""
        return end if self.fixed_head is None else Adapter(end.low_rank, end.head - self.fixed_head)


@dataclass(frozen=True)
class FedDPAClient(ClientHalf):
    """Keeps the private adapter; ``budget`` is ``full`` or ``equal``."""

    budget: str

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the private adapter over the received one, then the received one, which is sent back."""
        mixed = self.compose(client, start, plan)
        private_steps, shared_steps = steps_of_both(steps, self.budget)
        private = client.train(mixed, private_steps)
        shared = client.train(Composition(start), shared_steps)
        client.keep(mixed.private(private.end))
        return replace(shared, metrics=private.metrics)

    def compose(self, client: LocalClient, adapter: Adapter, plan: LocalPlan) -> Mixed:
        """Return the private adapter over (1 - lambda) of the received one."""
        return mixed_with_private(adapter, client.kept(), affinity(client))


def mixed_with_private(received: Adapter, private: Adapter | None, share: float) -> Mixed:
    """Return (1 - share) of ``received``, fixed, plus the private adapter: at first ``share`` of the received one."""
    part = received.scaled(share) if private is None else private
    fixed = received.scaled(1 - share)
    base = Adapter(fixed.low_rank, torch.zeros_like(fixed.head))
    return Mixed(Adapter(part.low_rank, part.head + fixed.head), base, fixed.head)


def affinity(client: LocalClient) -> float:
    """Return lambda in [0, 1]: the mean cosine of frozen features of validation samples to a few training samples."""
    train, validation = client.tokens("train"), client.tokens("validation")
    if not len(validation):
        return 1.0
    model = client.model
    reference, asked = (
        torch.nn.functional.normalize(model.frozen_features(tokens.to(model.device)), dim=1)
        for tokens in (train.tokens[:REFERENCE_SAMPLES], validation.tokens)
    )
    return float((asked @ reference.T).mean().clamp(0, 1))


def build(config: RunConfig) -> FedDPAClient:
    """Return the client half with the settings under ``feddpa``."""
    return FedDPAClient(config.of(FedDPASettings).budget)
