"""Potara at the client: the received adapter merged at use with one that is fine-tuned locally (arXiv 2602.18658).

The local adapter begins fresh, like the federated one, and goes on from where it ended in the client's last round; the
server's never enters it. Each of the two is trained for the whole local budget; ``potara.budget = equal`` shares the
budget out between them.

theta = lambda theta_fed + (1 - lambda) theta_loc with lambda = (b - c) / (a + b - 2c), which minimises tr Var(theta):
a = tr Var(fed), b = tr Var(loc), c = tr Cov. With per-sample gradients g_s and the damped diagonal Fisher
F = mean g_s^2 + delta, the deviation that sample s causes is taken as F^-1 g_s: a and b are its mean squares at each of
the two adapters, c the mean product. lambda is 1/2 where a + b = 2c.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter, combine
from models.adapters.training import TokenSet, loss_gradient
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained, steps_of_both
from strategies.methods.potara.config import PotaraSettings

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

DAMPING = 0.1
FISHER_SAMPLES = 30


class MergingClient(ClientHalf):
    """Merges what it receives with what it kept when it uses an adapter."""

    def compose(self, client: LocalClient, adapter: Adapter, plan: LocalPlan) -> Composition:
        """Return the merged adapter; a client that kept nothing uses what it received."""
        kept = client.kept()
        return Composition(adapter if kept is None else merged(client, adapter, kept), plan.base)


@dataclass(frozen=True)
class PotaraClient(MergingClient):
    """Trains what it receives and, by itself, the adapter that it keeps.

    Attributes:
        seed: of the run, which the fresh adapter follows from.
        budget: ``full`` or ``equal``.
    """

    seed: int
    budget: str

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received adapter, which is sent back, and the local one, which is kept."""
        shared_steps, own_steps = steps_of_both(steps, self.budget)
        shared = client.train(Composition(start, plan.base), shared_steps)
        own = client.kept() or client.model.fresh_adapter(self.seed)
        client.keep(client.train(Composition(own, plan.base), own_steps).end)
        return shared


def merged(client: LocalClient, received: Adapter, kept: Adapter) -> Adapter:
    """Return T_r( lambda dW_received + (1 - lambda) dW_kept ) with lambda from the client's training samples."""
    samples = client.tokens("train")
    few = replace(samples, tokens=samples.tokens[:FISHER_SAMPLES], labels=samples.labels[:FISHER_SAMPLES])
    pair = (client.with_prior(received), client.with_prior(kept))
    left, right = (deviations(sample_gradients(client.model, few, adapter)) for adapter in pair)
    weight = merging_weight(left, right)
    return combine([received, kept], [weight, 1 - weight]).truncated(received.rank).aligned(received)


def merging_weight(federated: Tensor, local: Tensor) -> float:
    """Return lambda in [0, 1] from the deviations (S, P) of both adapters."""
    a, b = (float(deviation.square().mean(dim=0).sum()) for deviation in (federated, local))
    c = float((federated * local).mean(dim=0).sum())
    spread = a + b - 2 * c
    return min(max((b - c) / spread, 0.0), 1.0) if spread > 1e-12 * (a + b) else 0.5


def deviations(gradients: Tensor) -> Tensor:
    """Return F^-1 g_s, shape (S, P), with F damped by a share of its mean."""
    fisher = gradients.square().mean(dim=0)
    return gradients / (fisher + DAMPING * fisher.mean() + torch.finfo(fisher.dtype).tiny)


def sample_gradients(model: AdaptedModel, samples: TokenSet, adapter: Adapter) -> Tensor:
    """Return the gradient of each sample's loss with respect to all parts of ``adapter``, shape (S, P)."""
    model.load(adapter)
    rows = []
    for index in range(len(samples)):
        sample = TokenSet(samples.tokens[index : index + 1], samples.labels[index : index + 1])
        gradient = loss_gradient(model, sample)
        rows.append(torch.cat([tensor.flatten() for _, tensor in sorted(gradient.tensors().items())]))
    return torch.stack(rows)


def build(config: RunConfig) -> PotaraClient:
    """Return the client half with the settings under ``potara``."""
    return PotaraClient(config.seed, config.of(PotaraSettings).budget)
