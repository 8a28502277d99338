"""Fed3R: the ridge regression of all clients' samples, exactly, in one round (ICML 2024, arXiv 2406.01116, eq. 4-7).

W = (A + lambda I)^-1 b with A = sum_i X_i^T X_i and b = sum_i X_i^T Y_i over frozen features X_i with a last column of
ones and one-hot labels Y_i; both sums follow from class statistics. The weights of each class are brought to length 1,
and a client that adapts goes on from the softmax classifier x W / temperature, as in the authors' code. Random features
are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from models.personalization.class_statistics import ClassStatistics
from strategies.methods.closed_form import ClosedForm, DescribedState, require_no_noise
from strategies.methods.fed3r.config import Fed3RSettings


@dataclass(frozen=True)
class Fed3R(ClosedForm):
    """Settings: lambda, the temperature, and what an adapting client trains."""

    ridge: float
    temperature: float
    adapts: str

    def heads(self, state: DescribedState, cards: Sequence[ClientCard]) -> list[Tensor]:
        """Return the same head for everybody."""
        return [self.global_head(state)] * len(cards)

    def global_head(self, state: DescribedState) -> Tensor:
        """Return the regression's weights, of length 1 for each class, over the temperature."""
        head = regression(state.described().values(), self.ridge)
        length = head[:, :-1].norm(dim=1, keepdim=True).clamp_min(torch.finfo(head.dtype).tiny)
        scaled: Tensor = head / length / self.temperature
        return scaled


def regression(statistics: Collection[ClassStatistics], ridge: float) -> Tensor:
    """Return W (C, d + 1) of the ridge regression of one-hot labels on features and a constant."""
    moments = torch.stack([second_moments(one) for one in statistics]).sum(dim=0)
    labelled = torch.stack([torch.cat([one.sums, one.counts[:, None]], dim=1) for one in statistics]).double()
    identity = torch.eye(len(moments), dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(moments + ridge * identity, labelled.sum(dim=0).mT)
    return solved.mT.float()


def second_moments(one: ClassStatistics) -> Tensor:
    """Return X^T X (d + 1, d + 1) of a client's features with a last column of ones, from its class statistics.

    The samples of a class scatter around its mean, so X^T X is the scatter within classes plus
    sum_c n_c mean_c mean_c^T.
    """
    sums, counts = one.sums.double(), one.counts.double()
    inner = one.dense_scatter().double() + sums.mT @ (sums / counts.clamp_min(1.0)[:, None])
    total = sums.sum(dim=0)
    return torch.cat([torch.cat([inner, total[:, None]], 1), torch.cat([total, counts.sum()[None]])[None]])


def build(config: RunConfig) -> Fed3R:
    """Return the method with the settings under ``fed3r``; raises ConfigError for a private run."""
    require_no_noise(config)
    settings = config.of(Fed3RSettings)
    return Fed3R(settings.ridge, settings.temperature, settings.adapts)
