"""FFA-LoRA: A is frozen at its random start and the same for all, B is trained and averaged (arXiv 2403.12313, eq. 5).

dW = sum_i w_i B_i A_0 exactly, since every product has the same A_0. A_0 is made from the run's seed on both sides and
never travels; with lora.adapter = miss it is that of MiSS, whose adapters this method averages exactly too.
"""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import HEAD, Adapter
from strategies.methods.fedit import FedIT

PLAN = LocalPlan(trains="B", down=("B", HEAD), up=("B", HEAD))


class FfaLora(FedIT):
    """State: the averaged adapter, whose A is that of the fresh one."""

    def plan(self, state: Adapter, card: ClientCard) -> LocalPlan:
        """Have B and the head trained and exchanged."""
        return PLAN


def build(config: RunConfig) -> FfaLora:
    """Return the method; it has no settings."""
    return FfaLora()
