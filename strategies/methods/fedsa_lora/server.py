"""FedSA-LoRA: A is averaged, B and the classifier stay with the client (arXiv 2410.01463, algorithm 1).

A = sum_i w_i A_i; client i works with dW_i = B_i A. A client that never trained has B = 0 and a fresh head.
"""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from strategies.methods.fedit import FedIT

PLAN = LocalPlan(down=("A",), up=("A",), personal=True)


class FedSALora(FedIT):
    """State: an adapter with the averaged A, B and head as they were at the start."""

    def plan(self, state: Adapter, card: ClientCard) -> LocalPlan:
        """Have A exchanged, B and the head kept by the client."""
        return PLAN


def build(config: RunConfig) -> FedSALora:
    """Return the method; it has no settings."""
    return FedSALora()
