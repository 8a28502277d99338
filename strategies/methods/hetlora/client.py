"""HetLoRA at the client: the last columns of its rank are penalised (arXiv 2401.06432, section 3.2).

lambda sum_modules ||B[:, k:r]||_F ||A[k:r, :]||_F is added to the loss at every local step, with r the client's rank
and k = max(1, floor(gamma r)) what it keeps if it prunes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from models.adapters.training import Penalty
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, MakePenalty, Trained
from strategies.methods.hetlora.config import HetLoraSettings
from strategies.methods.hetlora.pruning import kept_rank, tail_size

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel


@dataclass(frozen=True)
class HetLoraClient(ClientHalf):
    """Trains what it receives with the penalty.

    Attributes:
        kept: gamma, the share of its rank that a client keeps when it prunes.
        penalty: lambda, the weight of the penalty.
    """

    kept: float
    penalty: float

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received start; its rank is the client's."""
        kept = kept_rank(start.rank, self.kept)
        composition = Composition(start, plan.base)
        if not self.penalty or kept == start.rank:
            return client.train(composition, steps)
        return client.train(composition, steps, self._penalty_from(kept))

    def _penalty_from(self, kept: int) -> MakePenalty:
        def make(model: AdaptedModel) -> Penalty:
            pairs = factor_pairs(model)
            return lambda: self.penalty * tail_size(pairs, kept)

        return make


def factor_pairs(model: AdaptedModel) -> list[tuple[Tensor, Tensor]]:
    """Return the trained B (m, r) and A (r, n) of every module of ``model``."""
    named = dict(model.network.named_parameters())
    return [(named[name.replace(".lora_A.", ".lora_B.")], A) for name, A in named.items() if ".lora_A." in name]


def build(config: RunConfig) -> HetLoraClient:
    """Return the client half with the settings under ``hetlora``."""
    settings = config.of(HetLoraSettings)
    return HetLoraClient(settings.kept, settings.penalty)
