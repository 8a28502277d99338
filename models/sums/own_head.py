"""The head that a client makes for itself of the anchor's and of its own samples, and of nothing else.

It is the most probable head where those of clients are spread around the anchor's as a Gaussian: multinomial logistic
regression whose penalty pulls towards the anchor's head in place of zero (MAP adaptation, Chelba and Acero 2004). The
loss is convex, so that there is one such head. Nothing of it leaves the client, and so it costs no privacy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    anchor = x @ before.mT * length
    change = torch.zeros_like(before, requires_grad=True)
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [change],
        max_iter=MOST_STEPS,
        history_size=MEMORY,
        tolerance_grad=CLOSE,
        tolerance_change=CLOSE * CLOSE,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(anchor + x @ change.mT, labels, reduction="sum")
        value = value + change.square().sum() / (2 * deviation**2)
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)
    return (before + change.detach() / length).to(head.dtype)
