"""Local training: every client goes on from its own last adapter and nothing is shared (the control).

The server keeps the adapters for the clients, so that this control runs through the same messages as the others. A
client that never trains has no adapter of its own; so that it can be scored, it gets the average of the others' heads
on the fresh factors, h = sum_i n_i h_i / sum_i n_i over all clients that have trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from strategies.methods.base.server import BaseMethod, ClientUpdate, without


@dataclass(frozen=True)
class LocalState:
    """The fresh adapter, and by client-id what each client ended with and from how many samples."""

    initial: Adapter
    own: Mapping[str, Adapter]
    examples: Mapping[str, int]


class Local(BaseMethod):
    """Returns to each client what it sent; before its first round a client gets the fresh adapter."""

    state_classes = (LocalState, Adapter, Factors)

    def init(self, initial: Adapter) -> LocalState:
        """Start from the fresh adapter, no client known."""
        return LocalState(initial, {}, {})

    def start(self, state: LocalState, card: ClientCard) -> Adapter:
        """Return the client's own last adapter; a client that never trains gets the average head."""
        if card.trains or not state.own:
            return state.own.get(card.client_id, state.initial)
        return Adapter(state.initial.low_rank, average_head(state))

    def aggregate(self, state: LocalState, updates: Sequence[ClientUpdate]) -> LocalState:
        """Keep each client's result under its client-id."""
        own = {update.card.client_id: update.end for update in updates}
        examples = {update.card.client_id: update.metrics.num_examples for update in updates}
        return replace(state, own={**state.own, **own}, examples={**state.examples, **examples})

    def forget(self, state: LocalState, client_id: str) -> LocalState:
        """Drop the client's adapter, and with it its share of the average head."""
        return replace(state, own=without(state.own, client_id), examples=without(state.examples, client_id))

    def anchor(self, state: LocalState) -> None:
        """Return None: there is no global adapter."""
        return


def average_head(state: LocalState) -> Tensor:
    """Return the heads of all clients that have trained, averaged by numbers of samples: (classes, width + 1)."""
    total = sum(state.examples.values())
    heads = [state.examples[name] / total * adapter.head for name, adapter in sorted(state.own.items())]
    return torch.stack(heads).sum(dim=0)


def build(config: RunConfig) -> Local:
    """Return the method; it has no settings."""
    return Local()
