"""The synthesizer S: which of the remembered deviations a client's start is made of.

alpha_ij = softmax_j( -d(s_i, s_j)^2 / temperature + log n_j + self_logit [i = j] ),
d(s, t)^2 = sum over groups g of metric_g times the mean over the group's coordinates of (s - t)^2,
start_i = T_r( dW_anchor + strength sum_j alpha_ij D_j ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.personalization.similarity import METRIC, coordinate_weights


@dataclass(frozen=True)
class Keys:
    """The N entries of the memory as the attention sees them.

    Attributes:
        embeddings: (N, k) of the clients' signatures.
        num_examples: (N,) training samples behind each deviation.
    """

    embeddings: Tensor
    num_examples: Tensor


@dataclass(frozen=True)
class Synthesizer:
    """How deviations are put together.

    Attributes:
        temperature: scale of the squared distance.
        self_logit: added to the logit of a client's entry of its past.
        strength: factor on the attended deviations; 0 attends to nothing.
        metric: weight of each group of coordinates of an embedding.
    """

    temperature: float = 0.3
    self_logit: float = 0.0
    strength: float = 1.0
    metric: Sequence[float] = METRIC

    def attention(self, queries: Tensor, keys: Keys, is_own_entry: Tensor, groups: Tensor) -> Tensor:
        """Return alpha (..., N), positive with sum 1.

        Args:
            queries: (..., k) embeddings of the clients that attend.
            keys: the memory.
            is_own_entry: (..., N) boolean, True where the entry is the client's own.
            groups: (k,) group of each coordinate, integers from 0.
        """
        return torch.softmax(self._logits(queries, keys, is_own_entry, groups), dim=-1)

    def attention_to_others(self, queries: Tensor, keys: Keys, is_own_entry: Tensor, groups: Tensor) -> Tensor:
        """Return alpha (..., N) as if the clients had no entry of their own.

        Args:
            queries, keys, is_own_entry, groups: as for :meth:`attention`.

        Returns:
            Weights with sum 1, zero at the client's own entry; all zero for a client that is alone in the memory.
        """
        alone = is_own_entry.all(dim=-1, keepdim=True)
        logits = self._logits(queries, keys, is_own_entry, groups).masked_fill(is_own_entry & ~alone, -torch.inf)
        return torch.softmax(logits, dim=-1).masked_fill(is_own_entry, 0.0)

    def _logits(self, queries: Tensor, keys: Keys, is_own_entry: Tensor, groups: Tensor) -> Tensor:
        weights = coordinate_weights(groups, self.metric)
        distance = ((keys.embeddings - queries[..., None, :]).square() * weights).sum(dim=-1)
        to_own_entry = self.self_logit * is_own_entry.to(queries.dtype)
        return -distance / self.temperature + keys.num_examples.log() + to_own_entry
