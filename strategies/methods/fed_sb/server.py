"""Fed-SB: an r x r core R between fixed B and A is all that clients train (arXiv 2502.15436, eq. 5-7).

dW = B R A with R averaged: sum_i w_i B R_i A = B R A exactly. B = U and A = V^T are the r leading singular vectors of
the first step of full fine-tuning, estimated from G = sum_i w_i G_i, the clients' gradients by the frozen weights: of
-sign(G), the first step of Adam, as the authors' code has it, or of -G. R begins as that step, eta S / s for the sign,
where S has the singular values and s is the scaling of the run; the step along -G is taken as long as that one.

A fresh head is zero, and so would be the gradient: in round 1 clients train the head alone and send the gradient at
its end. One r serves all modules: unless it is set, that at which all cores together have as many numbers as LoRA's
factors. Clients keep nothing between rounds, so B and A travel down each time, where the paper sends them once; R and
the head alone travel up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan, with_core
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import HEAD, Adapter
from models.adapters.weight_gradient import unpacked
from models.lowrank.factors import Factors, concatenate
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights
from strategies.methods.fed_sb.config import FedSBSettings


@dataclass(frozen=True)
class FedSBState:
    """The fresh factors with the averaged head; B and A, none before the first round; and R (blocks, r, r) by kind."""

    adapter: Adapter
    frame: Adapter | None
    core: Mapping[str, Tensor]


@dataclass(frozen=True)
class FedSB(BaseMethod):
    """In the first round the gradient is estimated, from the second on the core is trained.

    Attributes:
        rank: r; 0 takes that of equal numbers.
        basis: ``gradient`` or ``sign``.
        step: eta / s, the size of an entry of the first step in units of products.
    """

    rank: int
    basis: str
    step: float
    state_classes = (FedSBState, Adapter, Factors)

    def init(self, initial: Adapter) -> FedSBState:
        """Start from the fresh adapter without a core."""
        return FedSBState(initial, None, {})

    def start(self, state: FedSBState, card: ClientCard) -> Adapter:
        """Send everybody the same head."""
        return state.adapter

    def plan(self, state: FedSBState, card: ClientCard) -> LocalPlan:
        """Have the core trained, once there is one."""
        if state.frame is None:
            rank = self._rank_for(state.adapter)
            return LocalPlan(trains=HEAD, down=(HEAD,), up=(HEAD,), gradient_rank=rank)
        return LocalPlan(trains="core", down=(HEAD,), up=(HEAD,), frame=state.frame, core=state.core)

    def aggregate(self, state: FedSBState, updates: Sequence[ClientUpdate]) -> FedSBState:
        """Average the heads, and take B, R and A from the gradients or average R."""
        weights = example_weights(updates)
        head = torch.stack([w * one.end.head for one, w in zip(updates, weights, strict=True)]).sum(dim=0)
        adapter = Adapter(state.adapter.low_rank, head)
        if state.frame is None:
            return self._framed(adapter, updates, weights)
        core = {
            kind: torch.stack([w * one.core[kind] for one, w in zip(updates, weights, strict=True)]).sum(dim=0)
            for kind in state.core
        }
        return FedSBState(adapter, state.frame, core)

    def anchor(self, state: FedSBState) -> Adapter:
        """Return B R A with the averaged head."""
        return with_core(state.adapter, state.frame, state.core)

    def _framed(self, adapter: Adapter, updates: Sequence[ClientUpdate], weights: Sequence[float]) -> FedSBState:
        """Return the state with the singular vectors of the average of the clients' gradients."""
        rank = self._rank_for(adapter)
        sent = [unpacked(update.gradient, adapter, rank) for update in updates]
        low_rank, core = {}, {}
        for kind in adapter.low_rank:
            gradient = concatenate([one[kind] for one in sent], weights).product()
            low_rank[kind], core[kind] = first_step(gradient, rank, self.basis, self.step)
        return FedSBState(adapter, Adapter(low_rank, torch.zeros_like(adapter.head)), core)

    def _rank_for(self, adapter: Adapter) -> int:
        return self.rank or equal_rank(adapter)


def equal_rank(adapter: Adapter) -> int:
    """Return the rank at which all cores have as many numbers as the factors: sqrt of the mean of r (m + n).

    It is rounded down, and at most the smallest m or n.
    """
    shapes = [factors.shape for factors in adapter.low_rank.values()]
    numbers = sum(math.prod(layers) * adapter.rank * (m + n) for *layers, m, n in shapes)
    modules = sum(math.prod(layers) for *layers, _, _ in shapes)
    return min(math.isqrt(numbers // modules), *(min(m, n) for *_, m, n in shapes))


def first_step(gradient: Tensor, rank: int, basis: str, step: float) -> tuple[Factors, Tensor]:
    """Return B = U, A = V^T and R = - diag(S) for the first step of full fine-tuning, cut to ``rank``.

    Args:
        gradient: G (blocks, m, n).
        rank: r.
        basis: ``sign`` decomposes step * sign(G); ``gradient`` decomposes G, scaled to the same Frobenius norm,
            step * sqrt(m n).
        step: size of one entry of the step.

    Returns:
        B (blocks, m, r) with A (blocks, r, n), and R (blocks, r, r).
    """
    wide = gradient.double()
    if basis == "sign":
        wide = step * wide.sign()
    else:
        size = torch.linalg.matrix_norm(wide, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
        wide = step * math.sqrt(math.prod(wide.shape[-2:])) * wide / size
    U, S, Vh = torch.linalg.svd(wide, full_matrices=False)
    frame = Factors(B=U[..., :rank], A=Vh[..., :rank, :]).to(gradient.dtype)
    return Factors(frame.B.contiguous(), frame.A.contiguous()), torch.diag_embed(-S[..., :rank]).to(gradient.dtype)


def build(config: RunConfig) -> FedSB:
    """Return the method with the settings under ``fed-sb``."""
    settings = config.of(FedSBSettings)
    return FedSB(settings.rank, settings.basis, config.train.learning_rate / config.lora.scaling)
