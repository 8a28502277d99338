"""FedSA-LoRA: A is averaged, B and the classifier stay with the client (arXiv 2410.01463, algorithm 1).

A = sum_i w_i A_i; client i works with dW_i = B_i A. A client has B = 0 and a fresh head before its first round.

The paper has no classifier for a client that never trains. So that such a client can be scored, heads are sent back
with A, and a client that never trains gets the average of the last cohort's, h = sum_i w_i h_i, with B = 0. No client
that trains is sent it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import HEAD, Adapter
from models.lowrank.factors import Factors
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights
from strategies.methods.fedit import average_factors

PLAN = LocalPlan(down=("A",), up=("A", HEAD), personal=True)
NEWCOMERS_PLAN = replace(PLAN, down=("A", HEAD))


@dataclass(frozen=True)
class FedSAState:
    """The fresh adapter, and one with the averaged A, the average head of the last cohort, and B = 0."""

    initial: Adapter
    average: Adapter


class FedSALora(BaseMethod):
    """Shares A; the heads that come back with it are for newcomers alone."""

    state_classes = (FedSAState, Adapter, Factors)

    def init(self, initial: Adapter) -> FedSAState:
        """Start from the fresh adapter."""
        return FedSAState(initial, initial)

    def start(self, state: FedSAState, card: ClientCard) -> Adapter:
        """Send the averaged A, to a client that never trains the average head too."""
        return Adapter(state.average.low_rank, state.initial.head) if card.trains else state.average

    def plan(self, state: FedSAState, card: ClientCard) -> LocalPlan:
        """Have B and the head kept by the client."""
        return PLAN if card.trains else NEWCOMERS_PLAN

    def aggregate(self, state: FedSAState, updates: Sequence[ClientUpdate]) -> FedSAState:
        """Average A and the heads; B is zero in all updates, since it is not sent."""
        return replace(state, average=average_factors([one.end for one in updates], example_weights(updates)))

    def anchor(self, state: FedSAState) -> Adapter:
        """Return what a newcomer gets."""
        return state.average


def build(config: RunConfig) -> FedSALora:
    """Return the method; it has no settings."""
    return FedSALora()
