"""HyperLoRA where the server reads nothing of a client but sums, in this process and without masks.

The functions of :mod:`models.sums` put together as a server and its clients would: what stands in :func:`averaged` and
:meth:`Evaluation.published` is all that such a server is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.amortisation import accuracy_of, features_of
from client_app.runtime import ClientRuntime
from client_app.tasks import NothingKept, describe_clients, train_start
from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan, Start
from hyperlora.messages.questions import TRIED_FACTORS
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainRequest
from models.adapters.adapter import Adapter, combine
from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.head_generator import SCALES, at_scale
from models.personalization.prior import add_prior
from models.sums.clusters import Clusters, grow_clusters, membership, moments, spread
from models.sums.group_statistics import GroupStatistics, Spread, contribution, deviations
from models.sums.local_head import LocalHead, PublicHeads
from models.sums.own_head import own_head
from models.sums.shared_factor import framed, moved, movement
from strategies.engine.history import sample_cohort
from strategies.methods.hyperlora.config import HyperLoraSettings

LEAST, MOST = 5, 16
"""Fewest clients of a cluster, and clusters at most."""
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Clients:
    """The clients of a run, in this process."""

    runtime: ClientRuntime
    cards: Mapping[str, ClientCard]

    @classmethod
    def of(cls, runtime: ClientRuntime) -> Clients:
        """Return all clients of a process."""
        cards = describe_clients(runtime, runtime.federation.client_ids).cards
        return cls(runtime, {card.client_id: card for card in cards})

    @property
    def training(self) -> dict[str, ClientCard]:
        """Those that train, and whose sums the server gets."""
        return {name: card for name, card in self.cards.items() if card.trains}

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return self.runtime.config

    def trained(self, anchor: Adapter, server_round: int, trains: str = "all") -> list[tuple[float, Adapter]]:
        """Return for every client of a round's cohort its number of samples and what it makes of the anchor.

        Args:
            anchor: that they start from.
            server_round: from 1.
            trains: ``all`` factors, ``B`` or ``A``, with the head.
        """
        return [self.trained_by(name, anchor, server_round, trains) for name in self.cohort(server_round)]

    def cohort(self, server_round: int) -> Sequence[str]:
        """Return who trains in a round."""
        size = self.config.federation.clients_per_round
        return sample_cohort(self.training, size, seed=self.config.seed, server_round=server_round)

    def trained_by(self, name: str, anchor: Adapter, server_round: int, trains: str = "all") -> tuple[float, Adapter]:
        """Return what :meth:`trained` does, of one client."""
        steps, digest = self.config.train.local_steps, self.cards[name].signature.digest()
        start = Start(anchor, LocalPlan(trains=trains))
        request = TrainRequest(name, server_round, steps, start, digest, False)
        reply = train_start(self.runtime, request, NothingKept())
        return float(reply.metrics.num_examples), reply.end


def averaged(trained: Sequence[tuple[float, Adapter]], told: Callable[[Adapter], Parts]) -> dict[str, Tensor]:
    """Return what clients tell, averaged by their samples: both sums are all that the server sees."""
    total = sum(count for count, _ in trained)
    parts = [{name: count * part for name, part in told(end).items()} for count, end in trained]
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) / total for name in parts[0]}


Move = Callable[["Clients", Adapter, Adapter, int], Adapter]
"""What the anchor becomes in a round: of clients, the anchor before round 1, the anchor now, and the round."""


def one_factor(step: float) -> Move:
    """Return the way of one sum of one factor in turn, moved by ``step`` times the average."""

    def move(clients: Clients, initial: Adapter, anchor: Adapter, server_round: int) -> Adapter:
        side = "B" if server_round % 2 else "A"
        start = framed(anchor, initial, side)
        trained = clients.trained(start, server_round, trains=side)
        average = averaged(trained, lambda end: movement(start, end, side))
        return moved(start, average, side, step).aligned(anchor)

    return move


def anchor_from_sums(clients: Clients, move: Move) -> Adapter:
    """Return the anchor that clients are served after all rounds: the running average, as in the open run."""
    share, config = clients.config.of(HyperLoraSettings).averaging, clients.config
    initial = start_from_sums(clients)
    anchor, average = initial, None
    for server_round in range(1, config.federation.rounds + 1):
        anchor = move(clients, initial, anchor, server_round)
        mixed = combine([average or anchor, anchor], [1.0 - share, share])
        average = mixed.truncated(anchor.rank).aligned(anchor)
    return average or anchor


def start_from_sums(clients: Clients) -> Adapter:
    """Return what clients begin with: the fresh adapter, with the head that ``lora.head-start`` says."""
    fresh = clients.runtime.model.fresh_adapter(clients.config.seed)
    if clients.config.lora.head_start == "zeros":
        return fresh
    there = Evaluation.of(clients, fresh, rank=fresh.head.shape[1] - 1)
    head = GroupStatistics.of(there.classes(dict.fromkeys(clients.training, 0), 1)).discriminant()
    tried = [replace(there, anchor=replace(fresh, head=factor * head)) for factor in TRIED_FACTORS]
    return min(tried, key=lambda one: one.loss(one.plain())).anchor


@dataclass(frozen=True)
class Evaluation:
    """What clients know of themselves at the end: features behind an anchor, class statistics, class frequencies."""

    clients: Clients
    anchor: Adapter
    statistics: Mapping[str, ClassStatistics]
    features: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]

    @classmethod
    def of(cls, clients: Clients, anchor: Adapter, rank: int | None = None) -> Evaluation:
        """Compute the features of all clients behind ``anchor``; the scatter has the rank of an open run by default."""
        clients.runtime.model.load(anchor)
        rank = rank or clients.config.of(HyperLoraSettings).statistics_rank
        features = {
            name: {split: features_of(clients.runtime, name, split) for split in ("train", "validation", "test")}
            for name in clients.cards
        }
        statistics = {
            name: compute_class_statistics(*one["train"], num_classes=len(anchor.head), rank=rank)
            for name, one in features.items()
        }
        return cls(clients, anchor, statistics, features)

    def vector(self, name: str) -> Tensor:
        """Return what a client is compared by."""
        return self.clients.cards[name].signature.feature_mean

    def moments(self) -> Tensor:
        """Return the sum of the moments of the clients that train."""
        return self._sum(moments)

    def spread(self, clusters: Clusters, directions: Tensor) -> Tensor:
        """Return the sum of their spreads."""
        return self._sum(partial(spread, clusters, directions))

    def members(self, clusters: Clusters) -> Tensor:
        """Return the sum of their memberships."""
        return self._sum(partial(membership, clusters))

    def _sum(self, told: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([told(self.vector(name)) for name in self.clients.training]).sum(dim=0)

    def published(self, most: int, *, second: bool = True) -> PublicHeads:
        """Return what the server publishes after all sums."""
        clusters = grow_clusters(self, least=LEAST, most=most)
        groups, training = len(clusters.counts), list(self.clients.training)
        member = {name: clusters.nearest(self.vector(name)) for name in training}
        public = PublicHeads.of(clusters, GroupStatistics.of(self.classes(member, groups)))
        if not second:
            return public
        told = [self._deviations(public, name, member[name]) for name in training]
        return replace(public, spread=Spread.of(torch.stack(told).sum(dim=0)))

    def classes(self, member: Mapping[str, int], groups: int) -> dict[str, Tensor]:
        """Return the sum of the class statistics of the clients that train, by group."""
        parts = [contribution(self.statistics[name], group, groups) for name, group in member.items()]
        return {part: torch.stack([one[part] for one in parts]).sum(dim=0) for part in parts[0]}

    def _deviations(self, public: PublicHeads, name: str, group: int) -> Tensor:
        distances, own = public.distances(self.vector(name)), self.statistics[name]
        return deviations(public.generator, own, public.statistics.groups[group], distances)

    def served(self, public: PublicHeads) -> dict[str, Adapter]:
        """Return what clients make of their clusters' heads at the scale of least loss, or of the anchor's alone."""
        heads = {name: self._head(public, name) for name in self.clients.cards}
        mixture = self._settings.head_share, self._settings.head_scale
        mixed = [{name: one.mixed(*at_scale(*mixture, factor)) for name, one in heads.items()} for factor in SCALES]
        tried = [self._fitted(one) for one in mixed]
        return min([self.fitted(), *tried], key=self.loss)

    @property
    def _settings(self) -> HyperLoraSettings:
        return self.clients.config.of(HyperLoraSettings)

    def _head(self, public: PublicHeads, name: str) -> LocalHead:
        own, frequencies = self.statistics[name], self.clients.cards[name].signature.class_frequencies
        strength = self.clients.config.prior_strength
        return LocalHead.of(public, self.anchor.head, self.vector(name), own, frequencies, strength)

    def plain(self) -> dict[str, Adapter]:
        """Return the anchor with each client's class prior."""
        return self._with_prior(dict.fromkeys(self.clients.cards, self.anchor.head))

    def fitted(self) -> dict[str, Adapter]:
        """Return the anchor with the head that each client fits to its own samples, told nothing of the others."""
        return self._fitted(dict.fromkeys(self.clients.cards, self.anchor.head))

    def _fitted(self, heads: Mapping[str, Tensor]) -> dict[str, Adapter]:
        """Return the anchor with these heads, each fitted to its client's samples beside its class prior."""
        return {
            name: replace(one, head=own_head(one.head, *self.features[name]["train"]))
            for name, one in self._with_prior(heads).items()
        }

    def _with_prior(self, heads: Mapping[str, Tensor]) -> dict[str, Adapter]:
        cards, strength = self.clients.cards, self.clients.config.prior_strength
        return {
            name: add_prior(Adapter(self.anchor.low_rank, head), cards[name].signature.class_frequencies, strength)
            for name, head in heads.items()
        }

    def loss(self, served: Mapping[str, Adapter]) -> float:
        """Return the mean validation loss of the clients that train: a sum as well."""
        return fmean(self._loss(served[name], name) for name in self.clients.training)

    def _loss(self, adapter: Adapter, name: str) -> float:
        features, labels = self.features[name]["validation"]
        logits = features @ adapter.head[:, :-1].mT + adapter.head[:, -1]
        return float(torch.nn.functional.cross_entropy(logits, labels))

    def accuracies(self, served: Mapping[str, Adapter]) -> dict[str, float]:
        """Return the test accuracy of every client."""
        return {name: accuracy_of(one, *self.features[name]["test"]) for name, one in served.items()}
