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

HALF = 0.5
"""Of a client: what rounding may add to a number of clients is far less."""


class NoSumError(RuntimeError):
    """A sum that clusters need was not to be had."""


MISCOUNTED = "it counts clients that are not in it: one of them does not tell 1"


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
        """Return the sum of moments (2 k + 1,), float64: a variance is the difference of two of them."""
        told = self._ask("moments", {}, "count")
        return torch.cat([told["count"], told["sum"], told["squares"]])

    def spread(self, clusters: Clusters, directions: Tensor) -> Tensor:
        """Return the sum of spreads (K, k) along ``directions`` (K, k)."""
        return self._ask("spread", {**public_clusters(clusters), "directions": directions})["spread"].float()

    def members(self, clusters: Clusters) -> Tensor:
        """Return the sum of memberships (K, 1 + k)."""
        told = self._ask("members", public_clusters(clusters), "counts")
        return torch.cat([told["counts"], told["sums"]], dim=1).float()

    def _ask(self, kind: str, public: Mapping[str, Tensor], counts: str = "") -> dict[str, Tensor]:
        """Return the sums; ``counts`` names the one that counts clients, which a client that lies may have changed."""
        told = self.channel.ask(self.grid, self.names, Question(kind, public), self.record)
        if told is None:
            raise NoSumError(kind)
        if counts and not possible_counts(told.sums[counts], len(told.clients)):
            self.record.note_missing_sum(kind, MISCOUNTED)
            raise NoSumError(kind)
        return dict(told.sums)


def possible_counts(counts: Tensor, clients: int) -> bool:
    """Tell whether numbers of clients can be those of so many; who had no finite answer counts for none."""
    return bool((counts > -HALF).all()) and HALF < float(counts.sum()) < clients + HALF
