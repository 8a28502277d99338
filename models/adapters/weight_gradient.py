"""The gradient of a client's training loss by the frozen weights themselves, as low-rank factors.

G = dL/dW of an adapted layer is m x n. What travels is its best approximation of a given rank, B A with
B (m, r) and A (r, n); the sum over clients of such products is again one of factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.adapters.adapter import Adapter
from models.adapters.training import TokenSet, loss_gradient
from models.lowrank.factors import Factors

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel


def weight_gradient(model: AdaptedModel, samples: TokenSet) -> dict[str, Tensor]:
    """Return kind -> dL/dW (blocks, m, n) of the adapted layers, W with what ``model`` carries; L over ``samples``."""
    with model.full_rank() as scaling:
        gradient = loss_gradient(model, samples)
    return {kind: factors.B / scaling for kind, factors in gradient.low_rank.items()}


def gradient_shapes(like: Adapter, rank: int) -> dict[str, tuple[int, ...]]:
    """Return kind -> shape of what :func:`packed` makes for modules of the shapes of ``like``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for kind, factors in like.low_rank.items():
        *layers, m, n = factors.shape
        shapes[kind] = (math.prod(layers) * (m + n) * rank,)
    return shapes


def packed(gradient: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return by kind what travels of matrices (blocks, m, n): B and A of their best approximation, one after another.

    Args:
        gradient: kind -> matrices.
        rank: r; where m or n is smaller, the rest is zero.
    """
    vectors = {}
    for kind, matrices in gradient.items():
        U, S, Vh = torch.linalg.svd(matrices.double(), full_matrices=False)
        missing = (0, rank - min(rank, S.shape[-1]))
        B = torch.nn.functional.pad((U * S[..., None, :])[..., :rank], missing)
        A = torch.nn.functional.pad(Vh[..., :rank, :], (0, 0, *missing))
        vectors[kind] = torch.cat([B.flatten(), A.flatten()]).to(matrices.dtype)
    return vectors


def unpacked(sent: Mapping[str, Tensor], like: Adapter, rank: int) -> dict[str, Factors]:
    """Return kind -> the factors that :func:`packed` wrote, for modules of the shapes of ``like``."""
    found = {}
    for kind, factors in like.low_rank.items():
        *layers, m, n = factors.shape
        B, A = torch.split(sent[kind], [math.prod(layers) * m * rank, math.prod(layers) * rank * n])
        found[kind] = Factors(B=B.reshape(*layers, m, rank), A=A.reshape(*layers, rank, n))
    return found
