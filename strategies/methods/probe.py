"""Linear probe: FedAvg on the head over frozen features, no LoRA (McMahan et al. 2017, arXiv 1602.05629, algorithm 1).

W = sum_i w_i W_i with dW = B A = 0 in every module. The control for whether a LoRA is worth anything: a client that
adapts trains the head alone, too. The adapters that are handed out have their usual form and B = 0.
"""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import HEAD, Adapter
from strategies.methods.fedit import FedIT

PLAN = LocalPlan(trains="head", down=(HEAD,), up=(HEAD,))


class Probe(FedIT):
    """State: the fresh adapter with the averaged head."""

    def plan(self, state: Adapter, card: ClientCard) -> LocalPlan:
        """Have the head alone trained and exchanged."""
        return PLAN


def build(config: RunConfig) -> Probe:
    """Return the method; it has no settings."""
    return Probe()
