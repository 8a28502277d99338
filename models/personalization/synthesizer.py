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
    """The memory as the attention sees it.

    Attributes:
        descriptions: (N, k) standardised descriptions of the clients behind the entries.
        counts: (N,) training samples behind each deviation.
    """

    descriptions: Tensor
    counts: Tensor


def initial_psi(
    *, temperature: float, self_logit: float, strength: float, parts: Sequence[str], metric: Sequence[float]
) -> dict[str, Tensor]:
    """Return the parameters psi before anything is learned.

    Args:
        temperature: scale of the squared distance.
        self_logit: what a client's own deviation gets on top.
        strength: factor on the attended deviations, the same for all ``parts`` (module kinds and head).
        metric: weight of each group of coordinates of a description.
    """
    return {
        "log_temperature": torch.tensor(temperature).log(),
        "self_logit": torch.tensor(self_logit),
        "log_metric": torch.tensor(list(metric)).log(),
        "strength": torch.full((len(parts),), strength),
    }


def attention(psi: Psi, query: Tensor, keys: Keys, own: Tensor, groups: Tensor) -> Tensor:
    """Return alpha (..., N), positive with sum 1, differentiable in psi.

    Args:
        psi: parameters, see :func:`initial_psi`.
        query: (..., k) standardised descriptions of clients.
        keys: the memory.
        own: (..., N) boolean, True where the entry is the client's own.
        groups: (k,) group of each coordinate, integers from 0.
    """
    return torch.softmax(_logits(psi, query, keys, own, groups), dim=-1)


def attention_to_others(psi: Psi, query: Tensor, keys: Keys, own: Tensor, groups: Tensor) -> Tensor:
    """Return alpha (..., N) as if the clients had no entry of their own; zero for who is alone in the memory."""
    logits = _logits(psi, query, keys, own, groups)
    alone = own.all(dim=-1, keepdim=True)
    return torch.softmax(logits.masked_fill(own & ~alone, -torch.inf), dim=-1).masked_fill(own, 0.0)


def _logits(psi: Psi, query: Tensor, keys: Keys, own: Tensor, groups: Tensor) -> Tensor:
    metric = psi["log_metric"].exp()
    weights = metric[groups] / torch.bincount(groups, minlength=metric.numel())[groups]
    distance = ((keys.descriptions - query[..., None, :]).square() * weights).sum(dim=-1)
    return -distance / psi["log_temperature"].exp() + keys.counts.log() + psi["self_logit"] * own.to(query.dtype)
