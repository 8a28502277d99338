"""FLoRA: the clients' factors are stacked and merged into the frozen weights (arXiv 2409.05976, eq. 4-6).

W <- W + sum_i w_i B_i A_i = W + [w_1 B_1, .., w_K B_K] [A_1; ..; A_K]; the next round starts from a fresh random A and
B = 0. Since a client may miss rounds, what was merged so far travels as one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hyperlora.config.schema import RunConfig
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter, combine
from models.lowrank.factors import ROW_NORM, Factors
from strategies.methods.base.server import ClientUpdate, example_weights
from strategies.methods.merging import MergedState, Merging, merged, without_head


@dataclass(frozen=True)
class Flora(Merging):
    """Settings: the seed of the fresh factors of each round."""

    seed: int

    def aggregate(self, state: MergedState, updates: Sequence[ClientUpdate]) -> MergedState:
        """Merge the stack, draw fresh factors, average the heads."""
        total = combine([update.end for update in updates], example_weights(updates))
        fresh = Adapter(
            {kind: self._fresh(kind, factors, state.rounds) for kind, factors in state.adapter.low_rank.items()},
            total.head,
        )
        return MergedState(fresh, merged(state.base, without_head(total)), state.rounds + 1)

    def _fresh(self, kind: str, factors: Factors, rounds: int) -> Factors:
        """Return B = 0 and a random A as PEFT draws it."""
        chance = torch.Generator().manual_seed(derive_seed(self.seed, "flora", kind, rounds))
        bound = ROW_NORM * (3 / factors.A.shape[-1]) ** 0.5
        A = (2 * torch.rand(factors.A.shape, generator=chance) - 1) * bound
        return Factors(B=torch.zeros_like(factors.B), A=A)


def build(config: RunConfig) -> Flora:
    """Return the method with the run's seed."""
    return Flora(config.seed)
