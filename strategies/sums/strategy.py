"""The round loop under secure aggregation: HyperLoRA computed from sums over clients (``privacy.mode = "sums"``).

Clients start from the anchor (the global adapter) and train one LoRA factor, in the next round the other. With the
other factor shared, one sum gives the exact average of the products B A (:mod:`models.sums.shared_factor`). Before an
evaluation, clients send class statistics, summed over clusters of at least ``privacy.least-clients`` clients, and each
client computes its own head. In the state, in checkpoints and in reports, clusters take the place that clients have in
an open run: of a single client, the server knows only that it takes part.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.movements import MOVEMENTS
from hyperlora.messages.plan import Start
from hyperlora.messages.questions import LOSS, Question, Sizes, public_anchor, public_clusters, public_groups
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainMetrics
from models.adapters.adapter import Adapter
from models.personalization.head_generator import SCALES, at_scale
from models.personalization.signature import Signature, Standardizer
from models.personalization.similarity import signature_vector, vector_groups
from models.sums.clusters import Clusters, grow_clusters
from models.sums.group_statistics import GroupStatistics, Spread
from models.sums.shared_factor import STEP, framed, moved
from strategies.engine.checkpoint import Checkpoint
from strategies.engine.evaluation import means_of
from strategies.engine.history import sample_cohort
from strategies.engine.records import ClientScore, client_score, evaluation_figures
from strategies.engine.strategy import LoraStrategy
from strategies.federation.roster import FederationError
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.server import HyperLoraMethod
from strategies.sums.channel import SumChannel, Summed
from strategies.sums.client_vectors import MISCOUNTED, ClientVectors, NoSumError, possible_counts
from strategies.sums.head_start import start_from_sums

log = logging.getLogger(__name__)
MOST_CLUSTERS = 16
Mixture = tuple[float, float]
"""Share of a client's own head, and the factor on it and the anchor's."""
UNSEEN = "unseen"
"""Name of all clients together that never train."""


@dataclass(frozen=True)
class Published:
    """What the server published before the last evaluation: clusters, their class statistics, how clients differ."""

    clusters: Clusters
    groups: GroupStatistics
    spread: Spread

    def tensors(self) -> dict[str, Tensor]:
        """Return the public tensors."""
        between = torch.tensor([self.spread.client, self.spread.single])
        return {**public_clusters(self.clusters), **public_groups(self.groups), "between clients": between}


class SumsStrategy(LoraStrategy):
    """Runs HyperLoRA on sums; arguments are those of :class:`~strategies.engine.strategy.LoraStrategy`."""

    clusters: Clusters | None = None
    group_cards: Mapping[str, ClientCard] = {}

    @property
    def least(self) -> int:
        """Fewest clients of a sum."""
        return self.settings.privacy.least_clients

    @property
    def known_cards(self) -> Mapping[str, ClientCard]:
        """The clusters, as cards: there are none of single clients that tell anything."""
        return self.group_cards

    def join(self, grid: Grid) -> None:
        """Wait for clients, of which a sum needs its least number even where one of them did not answer before."""
        self.roster.least = self.least
        super().join(grid)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Refuse: a sum takes five exchanges, which Flower's own loop does not make.

        Raises:
            FederationError: always.
        """
        raise FederationError("a run of sums is driven by its own loop (start), and not by Flower's")

    def _make_round(self, server_round: int, grid: Grid, timeout: float) -> MetricRecord | None:
        """Make a round: one sum over its cohort."""
        self._begin(server_round, grid)
        record, began, self._channel.timeout = self.record, time.perf_counter(), timeout
        names = [name for name, card in self.roster.reachable().items() if card.trains]
        if server_round == 1 and self.settings.head_start == "classes":
            self.state = self.method.init(start_from_sums(self._fresh, self._channel, grid, names, record))
        record.cohort = self._cohort(names, server_round)
        self.history.note_cohort(server_round, record.cohort)
        self.on_cohort(server_round, record.cohort)
        found = self._averaged(grid, self._channel, record.cohort)
        record.add_seconds("waiting", time.perf_counter() - began)
        if found is None:
            return None
        end, clients = found
        self.state = self.method.aggregate(self.state, [self._as_update(end)])
        record.training = {"clients": clients}
        return MetricRecord({"num_clients": clients})

    def _cohort(self, names: Sequence[str], server_round: int) -> list[str]:
        """Return who trains in a round."""
        size = self.settings.clients_per_round
        return sample_cohort(names, size, seed=self.settings.seed, server_round=server_round)

    @property
    def _hyperlora(self) -> HyperLoraMethod:
        """The method; raises FederationError where it is another one."""
        if not isinstance(self.method, HyperLoraMethod):
            raise FederationError("a run of sums is one of HyperLoRA")
        return self.method

    def _register(self) -> None:
        """Leave the state as it is: what nodes tell of their clients says nothing of their data."""

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint; clusters are found anew before the next evaluation."""
        super().resume(replace(checkpoint, cards={}))
        self.group_cards = dict(checkpoint.cards)

    @functools.cached_property
    def _sizes(self) -> Sizes:
        settings, registrar, own = self.settings, self.registrar, self.settings.privacy
        width = (registrar.signature_size - registrar.num_classes - 1) // 2
        return Sizes(width, self._fresh, len(settings.evaluate_steps), 0, own.adapter_clip, own.least_share)

    @functools.cached_property
    def _channel(self) -> SumChannel:
        return SumChannel(self.registrar, self._sizes, self.settings.round_timeout, self.least, self.settings.digest)

    def _asked(self, kind: str, public: Mapping[str, Tensor]) -> Question:
        """Return a question of one kind."""
        return Question(kind, public)

    def _averaged(self, grid: Grid, channel: SumChannel, cohort: Sequence[str]) -> tuple[Adapter, int] | None:
        """Return the anchor after what a cohort makes of it, and of how many; None where there is no sum."""
        side = "B" if self.record.server_round % 2 else "A"
        start = framed(self.state.anchor, self._fresh, side)
        told = channel.ask(grid, cohort, self._asked(MOVEMENTS[side], public_anchor(start)), self.record)
        if told is None or not self._counts(told):
            return None
        return moved(start, self._mean(told), side, STEP), len(told.clients)

    def _counts(self, told: Summed) -> bool:
        """Tell whether a sum of movements has an average; the log says where it has none."""
        weight = told.sums.get("weight")
        if weight is None or float(weight) > 0.0:
            return True
        log.warning("round %d changes nothing: its clients count for nothing together", self.record.server_round)
        return False

    def _mean(self, told: Summed) -> dict[str, Tensor]:
        """Return the average of movements, by the clients' samples."""
        weight = told.sums["weight"]
        return {name: one / weight for name, one in told.sums.items() if name != "weight"}

    def _as_update(self, end: Adapter) -> ClientUpdate:
        """Return the average as the update of one client that stands for all."""
        card = next(iter(self.roster.cards.values()))
        metrics = TrainMetrics(1, 0.0, 0.0, 0.0, 0.0, 0.0, seconds=0.0)
        return ClientUpdate(replace(card, client_id="all"), self.state.anchor, end, metrics)

    def _evaluate(self, grid: Grid, timeout: float, *, last: bool) -> MetricRecord | None:
        """Ask for class statistics by cluster, publish them, and have clients score what they make of them."""
        began, self._channel.timeout = time.perf_counter(), timeout
        names = {
            flag: [n for n, card in self.roster.reachable().items() if card.trains == flag] for flag in (True, False)
        }
        try:
            question = self._prepare_scores(grid, names[True])
        except (ValueError, RuntimeError, LookupError) as error:  # a client that lies has a say in every sum
            self.record.failures["round"] = f"the sums of the evaluation cannot be those of honest clients: {error}"
            log.warning("round %d: %s", self.record.server_round, self.record.failures["round"])
            return None
        if question is None:
            return None
        self.scores = []
        for seen, own in names.items():
            if 0 < len(own) < self.least:
                log.warning("%d %s clients are too few for a sum", len(own), "seen" if seen else "unseen")
            elif own:
                told = self._channel.ask(grid, own, question(seen), self.record)
                if told and "clients" in told.sums and not possible_counts(told.sums["clients"], len(told.clients)):
                    self.record.note_missing_sum("scores", MISCOUNTED)
                    told = None
                self.scores += self._scores(told, seen=seen) if told else []
        self.record.evaluation = evaluation_figures(self.scores)
        self.record.add_seconds("evaluating", time.perf_counter() - began)
        self._report()
        return means_of(self.record.evaluation)

    def _prepare_scores(self, grid: Grid, names: Sequence[str]) -> Callable[[bool], Question] | None:
        """Publish clusters, and return the question that seen or unseen clients are scored by; None without a sum."""
        published = self._published(grid, self._channel, names)
        if published is None:
            return None
        public = self._public(published, self._chosen_mixture(grid, self._channel, names, published))
        self._take(published, public)
        clusters = torch.arange(float(len(published.clusters.counts)))
        return lambda seen: Question(
            "scores", {**public, "scored in": clusters if seen else torch.zeros_like(clusters)}
        )

    def _published(self, grid: Grid, channel: SumChannel, names: Sequence[str]) -> Published | None:
        """Return what is published before an evaluation; None where there is no sum."""
        if self.clusters is None:
            try:
                vectors = ClientVectors(channel, grid, names, self.record)
                self.clusters = grow_clusters(vectors, least=self.least, most=MOST_CLUSTERS)
            except NoSumError:
                return None
        public = {**public_anchor(self.state.served_anchor), **public_clusters(self.clusters)}
        classes = channel.ask(grid, names, Question("classes", public), self.record)
        if classes is None:
            return None
        groups = GroupStatistics.of(classes.sums)
        told = channel.ask(grid, names, Question("deviations", {**public, **public_groups(groups)}), self.record)
        return None if told is None else Published(self.clusters, groups, Spread.of(told.sums["deviations"]))

    def _public(self, published: Published, mixture: Mixture) -> dict[str, Tensor]:
        return {
            **public_anchor(self.state.served_anchor),
            **published.tensors(),
            "mixture": torch.tensor(mixture),
        }

    def _chosen_mixture(self, grid: Grid, channel: SumChannel, names: Sequence[str], published: Published) -> Mixture:
        """Return share and scale of clients' own heads with the lowest loss, share 0 where the anchor's has it."""
        mixture = float(self._hyperlora.head_share), self._hyperlora.head_scale
        if not mixture[0]:
            return 0.0, 1.0
        asked = Question("losses", self._public(published, mixture))
        told = channel.ask(grid, names, asked, self.record)
        if told is None or not float(told.sums["anchor"]):  # a sum of 0: nobody has validation samples
            return mixture
        loss, factor = min(zip(told.sums["own"].tolist(), SCALES, strict=True))
        return at_scale(*mixture, factor) if loss < float(told.sums["anchor"]) else (0.0, 1.0)

    def _take(self, published: Published, public: Mapping[str, Tensor]) -> None:
        """Put the clusters into the state in the place of clients."""
        clusters, groups = published.clusters, published.groups
        named = {f"group-{index}": one for index, one in enumerate(groups.groups, start=1)}
        vectors = clusters.centroids * clusters.scale + clusters.center
        self.group_cards = {
            name: group_card(name, vector, one.counts)
            for (name, one), vector in zip(named.items(), vectors, strict=True)
        }
        first = next(iter(self.group_cards.values())).signature
        rest = torch.zeros(len(signature_vector(first)) - len(clusters.center))
        scale = Standardizer(torch.cat([clusters.center, rest]), torch.cat([clusters.scale, rest + 1.0]))
        self.state = replace(
            self.state,
            standardizer=scale,
            signature_vectors={name: signature_vector(card.signature) for name, card in self.group_cards.items()},
            groups=vector_groups(first),
            training=tuple(named),
            class_statistics=named,
            told_before={},
            published=public,
        ).with_service(strength=0.0, share=float(public["mixture"][0]), scale=float(public["mixture"][1]))

    def _scores(self, told: Summed, *, seen: bool) -> list[ClientScore]:
        """Return the mean scores of each group of clients."""
        any_card = next(iter(self.group_cards.values()))
        cards = list(self.group_cards.values()) if seen else [replace(any_card, client_id=UNSEEN, trains=False)]
        return [
            self._score(card, {name: one[index] for name, one in told.sums.items()}) for index, card in enumerate(cards)
        ]

    def _score(self, card: ClientCard, sums: Mapping[str, Tensor]) -> ClientScore:
        count, steps = max(float(sums["clients"]), 1.0), list(self.settings.evaluate_steps)
        accuracy, loss, validation, calibration = (
            (sums[part] / count).clamp(0.0, most).tolist()
            for part, most in (("accuracy", 1.0), ("loss", LOSS), ("validation", LOSS), ("calibration", 1.0))
        )
        tests = max(round(float(sums["tests"])), 0)
        reply = EvaluateReply(card.client_id, tests, accuracy, loss, validation, calibration, 0.0)
        request = EvaluateRequest(card.client_id, self.record.server_round, steps, Start(self._fresh))
        return client_score(card, request, reply)


def group_card(name: str, vector: Tensor, counts: Tensor) -> ClientCard:
    """Return the card of a cluster."""
    smoothed = counts + 1.0
    total = max(int(counts.sum()), 1)
    signature = Signature(vector, torch.zeros_like(vector), smoothed / smoothed.sum(), math.log(total))
    return ClientCard(name, name, True, total, signature)
