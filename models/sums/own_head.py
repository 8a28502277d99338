"""The head that a client makes for itself of the anchor's and of its own samples, and of nothing else.

It is the most probable head where those of clients are spread around the anchor's as a Gaussian: multinomial logistic
regression whose penalty pulls towards the anchor's head in place of zero (MAP adaptation, Chelba and Acero 2004). The
loss is convex, so that there is one such head. Nothing of it leaves the client, and so it costs no privacy.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

DEVIATION = 4.0
"""How far a client's logits lie from the anchor's, nats: the standard deviation at a sample of average length."""
MOST_STEPS, MEMORY, CLOSE = 500, 10, 1e-7


def own_head(head: Tensor, features: Tensor, labels: Tensor, deviation: float = DEVIATION) -> Tensor:
    """Return argmin over H of sum_i CE(H x_i, y_i) + m |H - head|^2 / (2 deviation^2), m the mean of |x_i|^2.

    Args:
        head: (C, d + 1), the bias last.
        features: (n, d) of the client's samples; each x_i has a 1 appended.
        labels: (n,).
        deviation: standard deviation of a logit, nats.

    Returns:
        (C, d + 1); ``head`` where there is no sample.
    """
    if not len(labels):
        return head
    x = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1).double()
    length = x.square().sum(dim=1).mean().sqrt()
    x, before = x / length, head.double()
    change = _least(x @ before.mT * length, x, labels, deviation**-2)
    return (before + change / length).to(head.dtype)


def _least(anchor: Tensor, x: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Return argmin over D (C, k) of sum_i CE(anchor_i + D x_i, y_i) + weight |D|^2 / 2, by L-BFGS from zero.

    The gradient is written out: with autograd and PyTorch's own L-BFGS a fit of ten classes takes four times as long.

    Args:
        anchor: (n, C) logits before.
        x: (n, k) inputs.
        labels: (n,).
        weight: of the penalty.
    """
    from scipy.optimize import minimize  # takes time to import, and most runs have no such head

    shape, samples = (anchor.shape[1], x.shape[1]), torch.arange(len(labels))

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        change = torch.from_numpy(flat).view(shape)
        log_shares = F.log_softmax(anchor + x @ change.mT, dim=1)
        loss = F.nll_loss(log_shares, labels, reduction="sum") + weight * change.square().sum() / 2
        residual = log_shares.exp()
        residual[samples, labels] -= 1.0
        return float(loss), (residual.mT @ x + weight * change).flatten().numpy()

    options = {"maxiter": MOST_STEPS, "maxcor": MEMORY, "gtol": CLOSE, "ftol": 0.0}
    found = minimize(loss_and_gradient, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).view(shape)
