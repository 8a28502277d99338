"""The synthesizer S_psi: a client's start from the anchor and what similar clients learned beyond it.

start_i = T_r( dW_anchor + strength sum_j alpha_ij D_j ),
alpha_ij = softmax_j( -d(s_i, s_j)^2 / temperature + log n_j + self_logit [i = j] ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapter import Adapter, combine

NEGLIGIBLE_WEIGHT = 1e-4


@dataclass(frozen=True)
class FixedKernel:
    """Attention with settings instead of learned parameters.

    Attributes:
        temperature: scale of the squared distance, which is a mean over coordinates.
        self_logit: what a client's own deviation gets on top.
        strength: factor on the attended deviations.
    """

    temperature: float
    self_logit: float
    strength: float

    def weights(self, query: Tensor, keys: Tensor, counts: Tensor, own: Tensor) -> Tensor:
        """Return alpha (N,), positive with sum 1.

        Args:
            query: (k,) standardised signature of the client.
            keys: (N, k) standardised signatures of the memory.
            counts: (N,) training samples behind each deviation.
            own: (N,) boolean, True where the entry is the client's own.
        """
        distance = (keys - query).square().mean(dim=1)
        logits = -distance / self.temperature + counts.log() + self.self_logit * own.to(query.dtype)
        return torch.softmax(logits, dim=0)


def synthesize(
    anchor: Adapter, deviations: Sequence[Adapter], weights: Tensor, *, strength: float, rank: int
) -> Adapter:
    """Return T_r(anchor + strength sum_j alpha_j D_j) in the anchor's gauge.

    Deviations whose weight is below ``NEGLIGIBLE_WEIGHT`` are left out.
    """
    chosen = [(one, float(w)) for one, w in zip(deviations, weights, strict=True) if w >= NEGLIGIBLE_WEIGHT]
    if not chosen or strength == 0:
        return anchor
    total = combine([anchor, *(one for one, _ in chosen)], [1.0, *(strength * w for _, w in chosen)])
    return total.truncated(rank).aligned(anchor)
