"""Fed-SB: an r x r core R between fixed B and A is all that clients train (arXiv 2502.15436, eq. 5-7).

dW = B R A with B = U and A = V^T from the SVD of a first full update, R averaged: sum_i w_i B R_i A = B R A exactly.
The first update is estimated by one round of ordinary LoRA, averaged in product space. Clients keep nothing between
rounds, so B and A travel down each time; R alone (and the head) travels up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import PLAIN_PLAN, LocalPlan, with_core
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import HEAD, Adapter, combine
from models.lowrank.factors import ROW_NORM, Factors, truncate
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights


@dataclass(frozen=True)
class FedSBState:
    """B, A and the head, and R (blocks, r, r) by kind, empty before the first update."""

    adapter: Adapter
    core: Mapping[str, Tensor]


class FedSB(BaseMethod):
    """The first round is ordinary LoRA, from the second on the core is trained."""

    state_classes = (FedSBState, Adapter, Factors)

    def init(self, initial: Adapter) -> FedSBState:
        """Start from the fresh adapter without a core."""
        return FedSBState(initial, {})

    def start(self, state: FedSBState, card: ClientCard) -> Adapter:
        """Send everybody the same B, A and head."""
        return state.adapter

    def plan(self, state: FedSBState, card: ClientCard) -> LocalPlan:
        """Have the core trained, once there is one."""
        return LocalPlan(trains="core", up=(HEAD,), core=state.core) if state.core else PLAIN_PLAN

    def aggregate(self, state: FedSBState, updates: Sequence[ClientUpdate]) -> FedSBState:
        """Take B, R and A from the first update; later average R and the head."""
        weights = example_weights(updates)
        if not state.core:
            return split_off_core(combine([update.end for update in updates], weights), state.adapter.rank)
        head = torch.stack([w * one.end.head for one, w in zip(updates, weights, strict=True)]).sum(dim=0)
        core = {
            kind: torch.stack([w * one.core[kind] for one, w in zip(updates, weights, strict=True)]).sum(dim=0)
            for kind in state.core
        }
        return FedSBState(Adapter(state.adapter.low_rank, head), core)

    def anchor(self, state: FedSBState) -> Adapter:
        """Return B R A."""
        return with_core(state.adapter, state.core)


def split_off_core(update: Adapter, rank: int) -> FedSBState:
    """Return U / c, diag(S) and c V^T of every module of ``update``, c the norm of a fresh adapter's rows."""
    low_rank, core = {}, {}
    for kind, factors in update.low_rank.items():
        cut = truncate(factors, rank)
        size = cut.singular_values[..., :rank]
        scale = (size / ROW_NORM).clamp(min=torch.finfo(size.dtype).tiny)
        low_rank[kind] = Factors(B=cut.kept.B / scale[..., None, :] / ROW_NORM, A=cut.kept.A)
        core[kind] = torch.diag_embed(size)
    return FedSBState(Adapter(low_rank, update.head), core)


def build(config: RunConfig) -> FedSB:
    """Return the method; it has no settings."""
    return FedSB()
