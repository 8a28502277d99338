"""Potara's merging weight (arXiv 2602.18658) from diagonal Fisher estimates on a few samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client_app.training import TokenSet, loss_gradient
from models.adapters.adapter import Adapter

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

DAMPING = 0.1


def merging_weight(model: AdaptedModel, samples: TokenSet, federated: Adapter, local: Adapter) -> float:
    """Return lambda of theta = lambda theta_fed + (1 - lambda) theta_loc, in [0, 1].

    lambda = (b - c) / (a + b - 2c) minimises tr Var(theta), a = tr Var(fed), b = tr Var(loc), c = tr Cov. With
    per-sample gradients g_s and the damped diagonal Fisher F = mean g_s^2 + delta, the deviation that sample s causes
    is taken as F^-1 g_s: a and b are its mean squares at each of the two, c the mean product. 1/2 where a + b = 2c.
    """
    left, right = (deviations(sample_gradients(model, samples, one)) for one in (federated, local))
    return weight_of(left, right)


def weight_of(federated: Tensor, local: Tensor) -> float:
    """Return lambda from the deviations (S, P) of both."""
    a, b = (float(one.square().mean(dim=0).sum()) for one in (federated, local))
    c = float((federated * local).mean(dim=0).sum())
    spread = a + b - 2 * c
    return min(max((b - c) / spread, 0.0), 1.0) if spread > 1e-12 * (a + b) else 0.5


def deviations(gradients: Tensor) -> Tensor:
    """Return F^-1 g_s, shape (S, P), with F damped by a share of its mean."""
    fisher = gradients.square().mean(dim=0)
    return gradients / (fisher + DAMPING * fisher.mean() + torch.finfo(fisher.dtype).tiny)


def sample_gradients(model: AdaptedModel, samples: TokenSet, adapter: Adapter) -> Tensor:
    """Return the gradient of each sample's loss by all parts of ``adapter``, shape (S, P)."""
    model.load(adapter)
    rows = []
    for index in range(len(samples)):
        one = TokenSet(samples.tokens[index : index + 1], samples.labels[index : index + 1])
        gradient = loss_gradient(model, one)
        rows.append(torch.cat([tensor.flatten() for _, tensor in sorted(gradient.tensors().items())]))
    return torch.stack(rows)
