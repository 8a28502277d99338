"""LoRA-FAIR: A is averaged and B is corrected towards the averaged product (arXiv 2411.14961, eq. 6-8).

With dW = sum_i w_i B_i A_i and the averages B, A: B' = B + dB where dB minimises S(dW, (B + dB) A) + lambda ||dB||^2.
``closed`` takes S as the squared distance, whose minimum is dB = (dW - B A) A^T (A A^T + lambda I)^-1; ``iterative``
takes S as one minus the cosine, as the paper, by gradient descent. No m x n matrix is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from models.adapters.adapter import Adapter, combine
from models.lowrank.factors import Factors
from strategies.methods.base.server import ClientUpdate, SharedAdapterMethod, example_weights
from strategies.methods.fedit import average_factors
from strategies.methods.lora_fair.config import LoraFairSettings

ITERATIONS, STEP = 100, 0.01


@dataclass(frozen=True)
class LoraFair(SharedAdapterMethod):
    """Settings: the form of S and lambda. State: the averaged A with the corrected B."""

    form: str
    penalty: float

    def aggregate(self, state: Adapter, updates: Sequence[ClientUpdate]) -> Adapter:
        """Average, then correct B."""
        ends, weights = [update.end for update in updates], example_weights(updates)
        average, exact = average_factors(ends, weights), combine(ends, weights)
        correct = corrected if self.form == "closed" else corrected_by_descent
        low_rank = {
            kind: Factors(B=correct(factors, exact.low_rank[kind], self.penalty), A=factors.A)
            for kind, factors in average.low_rank.items()
        }
        return Adapter(low_rank, average.head)


def corrected(average: Factors, exact: Factors, penalty: float) -> Tensor:
    """Return B' = B + (dW - B A) A^T (A A^T + lambda I)^-1.

    Args:
        average: the averaged factors B (..., m, r) and A (..., r, n).
        exact: the averaged product dW, as factors of any rank.
        penalty: lambda.
    """
    A = average.A.double()
    residual = exact.B.double() @ (exact.A.double() @ A.mT) - average.B.double() @ (A @ A.mT)
    core = A @ A.mT + penalty * torch.eye(average.rank, dtype=torch.float64)
    change: Tensor = torch.linalg.solve(core, residual, left=False)
    return (average.B + change).to(average.B.dtype)


def corrected_by_descent(average: Factors, exact: Factors, penalty: float) -> Tensor:
    """Return B' by ``ITERATIONS`` Adam steps on 1 - cos(dW, (B + dB) A) + lambda ||dB||^2, each module for itself."""
    B, A = average.B.double(), average.A.double()
    target, size = exact.B.double() @ (exact.A.double() @ A.mT), _norm(exact.B.double(), exact.A.double())
    change = torch.zeros_like(B, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=STEP)
    for _ in range(ITERATIONS):
        now = B + change
        cosine = (now * target).sum(dim=(-2, -1)) / (_norm(now, A) * size).clamp(min=1e-12)
        loss = (1 - cosine + penalty * change.square().sum(dim=(-2, -1))).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss, inputs=[change])
        optimizer.step()
    return (B + change.detach()).to(average.B.dtype)


def _norm(B: Tensor, A: Tensor) -> Tensor:
    """Return ||B A||_F from r x r products."""
    return ((B.mT @ B) * (A @ A.mT)).sum(dim=(-2, -1)).clamp(min=1e-24).sqrt()


def build(config: RunConfig) -> LoraFair:
    """Return the method with the settings under ``lora-fair``."""
    settings = config.of(LoraFairSettings)
    return LoraFair(settings.form, settings.penalty)
