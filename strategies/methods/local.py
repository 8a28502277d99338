"""Local training: every client goes on from its own last adapter and nothing is shared (the control).

The server keeps the adapters for the clients, so that this control runs through the same messages as the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from strategies.methods.base.server import BaseMethod, ClientUpdate


@dataclass(frozen=True)
class LocalState:
    """The fresh adapter, and by client-id what each client ended with."""

    initial: Adapter
    own: Mapping[str, Adapter]


class Local(BaseMethod):
    """Returns to each client what it sent; a client that never trained gets the fresh adapter."""

    state_classes = (LocalState, Adapter, Factors)

    def init(self, initial: Adapter) -> LocalState:
        """Start from the fresh adapter, no client known."""
        return LocalState(initial, {})

    def start(self, state: LocalState, card: ClientCard) -> Adapter:
        """Return the client's own last adapter."""
        return state.own.get(card.client_id, state.initial)

    def aggregate(self, state: LocalState, updates: Sequence[ClientUpdate]) -> LocalState:
        """Keep each client's result under its client-id."""
        return replace(state, own={**state.own, **{update.card.client_id: update.end for update in updates}})

    def anchor(self, state: LocalState) -> None:
        """Return None: there is no global adapter."""
        return


def build(config: RunConfig) -> Local:
    """Return the method; it has no settings."""
    return Local()
