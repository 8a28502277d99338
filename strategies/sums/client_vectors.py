"""Asks clients of the vectors that clusters are grown of (:class:`models.sums.clusters.SumsOfVectors`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.serverapp import Grid
from torch import Tensor

from hyperlora.messages.questions import Question, public_clusters
from models.sums.clusters import Clusters
from strategies.engine.records import RoundRecord
from strategies.sums.channel import SumChannel


class NoSumError(RuntimeError):
    """A sum that clusters need was not to be had."""


@dataclass(frozen=True)
class ClientVectors:
    """The vectors (k,) of some clients, of which sums are all that can be asked.

    Attributes:
        channel: asks.
        grid: Flower's.
        names: client-ids.
        record: of the round.

    Every method raises NoSumError where too few answer.
    """

    channel: SumChannel
    grid: Grid
    names: Sequence[str]
    record: RoundRecord

    def moments(self) -> Tensor:
        """Return the sum of moments (2 k + 1,)."""
        told = self._ask("moments", {})
        return torch.cat([told["count"], told["sum"], told["squares"]])

    def spread(self, clusters: Clusters, directions: Tensor) -> Tensor:
        """Return the sum of spreads (K, k) along ``directions`` (K, k)."""
        return self._ask("spread", {**public_clusters(clusters), "directions": directions})["spread"]

    def members(self, clusters: Clusters) -> Tensor:
        """Return the sum of memberships (K, 1 + k)."""
        told = self._ask("members", public_clusters(clusters))
        return torch.cat([told["counts"], told["sums"]], dim=1)

    def _ask(self, kind: str, public: Mapping[str, Tensor]) -> dict[str, Tensor]:
        told = self.channel.ask(self.grid, self.names, Question(kind, public), self.record)
        if told is None:
            raise NoSumError(kind)
        return {name: one.float() for name, one in told.sums.items()}
