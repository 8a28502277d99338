"""FedPer, FedRep and FedBABU: LoRA is shared, the head is not (arXiv 1912.00818, algorithms 1 and 2).

A = sum_i w_i A_i, B = sum_i w_i B_i; client i works with these and its own head. FedPer trains both at once, FedRep
(arXiv 2102.07078, algorithm 1) the head first and LoRA under it, FedBABU (arXiv 2106.06042, algorithm 1) LoRA alone
under one random head that is the same for all, and the head at use. The papers have no head for a client that never
trained. Here clients send theirs, and the average is for newcomers alone; ``fedper.newcomer-head = "fresh"`` keeps all
heads where they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import PARTS, LocalPlan
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from strategies.methods.fedit import FedIT
from strategies.methods.fedper.config import FedPerSettings

FACTORS = ("A", "B")


@dataclass(frozen=True)
class FedPer(FedIT):
    """State: averaged factors with the head of a client that has none of its own."""

    plan_of_form: LocalPlan

    def plan(self, state: Adapter, card: ClientCard) -> LocalPlan:
        """Have the client use a head of its own."""
        return self.plan_of_form


@dataclass(frozen=True)
class FedBabu(FedPer):
    """State: averaged factors with the fixed head."""

    seed: int

    def init(self, initial: Adapter) -> Adapter:
        """Start under a random head: under one of zeros LoRA has no gradient."""
        return with_random_head(initial, derive_seed(self.seed, "fedbabu"))


def with_random_head(adapter: Adapter, seed: int) -> Adapter:
    """Return the adapter with uniform weights in +-1/sqrt(width) for a head of zeros, and no bias (PyTorch's own)."""
    if bool(adapter.head.any()):
        return adapter
    head, bound = torch.zeros_like(adapter.head), (adapter.head.shape[1] - 1) ** -0.5
    head[:, :-1].uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    return Adapter(adapter.low_rank, head)


def build(config: RunConfig) -> FedPer:
    """Return the method with the settings under ``fedper``."""
    settings = config.of(FedPerSettings)
    if settings.form == "fedbabu":
        return FedBabu(LocalPlan(up=FACTORS), config.seed)
    up = PARTS if settings.newcomer_head == "average" else FACTORS
    return FedPer(LocalPlan("head" if settings.form == "fedrep" else "all", up=up, personal=True))
