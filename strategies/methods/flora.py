"""FLoRA: the clients' factors are stacked and merged into the frozen weights (arXiv 2409.05976, eq. 4-6).

W <- W + sum_i w_i B_i A_i = W + [w_1 B_1, .., w_K B_K] [A_1; ..; A_K]; in every round every client starts from B = 0
and a random A of its own, as in the authors' code: drawn from the seed, the round and the client-id. Since a client
may miss rounds, what was merged so far travels as one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter, combine, resized
from models.lowrank.factors import ROW_NORM, Factors
from strategies.methods.base.server import ClientUpdate, example_weights
from strategies.methods.merging import MergedState, Merging, merged, without_head


@dataclass(frozen=True)
class Flora(Merging):
    """Settings: the seed of the fresh factors of each round and client."""

    seed: int

    def start(self, state: MergedState, card: ClientCard) -> Adapter:
        """Send the head with factors of the client's own, cut to its rank."""
        low_rank = {
            kind: self._fresh(factors, kind, state.rounds, card.client_id)
            for kind, factors in state.adapter.low_rank.items()
        }
        return resized(Adapter(low_rank, state.adapter.head), card.rank or state.adapter.rank)

    def aggregate(self, state: MergedState, updates: Sequence[ClientUpdate]) -> MergedState:
        """Merge the stack and average the heads; the factors of the state stay as they were at the start."""
        total = combine([update.end for update in updates], example_weights(updates))
        adapter = Adapter(state.adapter.low_rank, total.head)
        return MergedState(adapter, merged(state.base, without_head(total)), state.rounds + 1)

    def _fresh(self, like: Factors, *purpose: str | int) -> Factors:
        """Return B = 0 and a random A as PEFT draws it."""
        chance = torch.Generator().manual_seed(derive_seed(self.seed, "flora", *purpose))
        bound = ROW_NORM * (3 / like.A.shape[-1]) ** 0.5
        A = (2 * torch.rand(like.A.shape, generator=chance) - 1) * bound
        return Factors(B=torch.zeros_like(like.B), A=A)


def build(config: RunConfig) -> Flora:
    """Return the method with the run's seed."""
    return Flora(config.seed)
