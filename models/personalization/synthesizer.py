"""The synthesizer S_psi: which of the remembered deviations a client's start is made of.

alpha_ij = softmax_j( -d_psi(s_i, s_j)^2 / temperature + log n_j + self_logit [i = j] ),
d_psi(s, t)^2 = sum over groups g of metric_g times the mean over the group's coordinates of (s - t)^2,
start_i = T_r( dW_anchor + sum_j strength_part alpha_ij D_j ), with a strength for each module kind and the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Psi = Mapping[str, Tensor]


@dataclass(frozen=True)
class Keys:
    """The N entries of the memory as the attention sees them.

    Attributes:
        embeddings: (N, k) of the clients' signatures.
        num_examples: (N,) training samples behind each deviation.
    """

    embeddings: Tensor
    num_examples: Tensor


def initial_psi(
    *, temperature: float, self_logit: float, strength: float, parts: Sequence[str], metric: Sequence[float]
) -> dict[str, Tensor]:
    """Return the parameters psi before anything is learned.

    Args:
        temperature: scale of the squared distance.
        self_logit: added to the logit of a client's entry of its past.
        strength: factor on the attended deviations, the same for all ``parts`` (module kinds and head).
        metric: weight of each group of coordinates of an embedding.
    """
    return {
        "log_temperature": torch.tensor(temperature).log(),
        "self_logit": torch.tensor(self_logit),
        "log_metric": torch.tensor(list(metric)).log(),
        "strength": torch.full((len(parts),), strength),
    }


def attention(psi: Psi, queries: Tensor, keys: Keys, is_own_entry: Tensor, groups: Tensor) -> Tensor:
    """Return alpha (..., N), positive with sum 1, differentiable in psi.

    Args:
        psi: parameters, see :func:`initial_psi`.
        queries: (..., k) embeddings of the clients that attend.
        keys: the memory.
        is_own_entry: (..., N) boolean, True where the entry is the client's own.
        groups: (k,) group of each coordinate, integers from 0.
    """
    return torch.softmax(_logits(psi, queries, keys, is_own_entry, groups), dim=-1)


def attention_to_others(psi: Psi, queries: Tensor, keys: Keys, is_own_entry: Tensor, groups: Tensor) -> Tensor:
    """Return alpha (..., N) as if the clients had no entry of their own.

    Args:
        psi, queries, keys, is_own_entry, groups: as for :func:`attention`.

    Returns:
        Weights with sum 1, zero at the client's own entry; all zero for a client that is alone in the memory.
    """
    logits = _logits(psi, queries, keys, is_own_entry, groups)
    alone = is_own_entry.all(dim=-1, keepdim=True)
    return torch.softmax(logits.masked_fill(is_own_entry & ~alone, -torch.inf), dim=-1).masked_fill(is_own_entry, 0.0)


def _logits(psi: Psi, queries: Tensor, keys: Keys, is_own_entry: Tensor, groups: Tensor) -> Tensor:
    metric = psi["log_metric"].exp()
    weights = metric[groups] / torch.bincount(groups, minlength=metric.numel())[groups]
    distance = ((keys.embeddings - queries[..., None, :]).square() * weights).sum(dim=-1)
    to_own_entry = psi["self_logit"] * is_own_entry.to(queries.dtype)
    return -distance / psi["log_temperature"].exp() + keys.num_examples.log() + to_own_entry
