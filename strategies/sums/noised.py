"""The round loop of a run of sums with noise: user-level differential privacy (``privacy.epsilon`` beside sums).

Rounds are those of :mod:`strategies.sums.strategy`, with movements of length ``privacy.adapter-clip`` at most. A client
makes its head of the anchor's and of its own samples (:mod:`models.sums.own_head`), which tells nobody anything; at an
evaluation one sum tells what such starts are worth. To the state, to checkpoints and to reports all clients that train
are one group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from flwr.app import MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from hyperlora.messages.noised_questions import units_of
from hyperlora.messages.questions import Question, public_anchor
from hyperlora.seeds import derive_seed
from strategies.engine.records import ClientScore
from strategies.sums.channel import Summed
from strategies.sums.noise_plan import NoisePlan
from strategies.sums.strategy import SumsStrategy, group_card

GROUP = "group-1"
"""Name of all clients that train."""


class NoisedSumsStrategy(SumsStrategy):
    """Runs HyperLoRA on sums with noise; arguments are those of :class:`strategies.engine.strategy.LoraStrategy`."""

    _score_noise: float = 0.0

    def _report(self) -> None:
        """Report how the method serves clients, and how noisy accuracies are."""
        super()._report()
        self.record.method |= {"score_noise": self._score_noise}

    @functools.cached_property
    def plan(self) -> NoisePlan:
        """How much noise each sum gets; made for the clients that are known when it is first asked for."""
        settings, own = self.settings, self.settings.privacy
        clients = sum(card.trains for card in self.roster.cards.values())
        evaluations = self._evaluations(settings.num_rounds)
        cohort = settings.clients_per_round
        return NoisePlan(own.epsilon, own.delta, settings.num_rounds, evaluations, cohort, max(clients, 1))

    def _evaluations(self, rounds: int) -> int:
        """Return how many evaluations there are until the end of a round."""
        every, most = self.settings.evaluate_every, self.settings.num_rounds
        return sum(one % every == 0 or one == most for one in range(1, rounds + 1))

    def _cohort(self, names: Sequence[str], server_round: int) -> list[str]:
        """Return who trains in a round: those that were asked least, so that none is in more rounds than it must be.

        That holds whoever is away in which round; among equals the run's seed decides.
        """
        asked, seed = self.history.asked, self.settings.seed
        order = sorted(names, key=lambda name: (asked.get(name, 0), derive_seed(seed, "turns", name)))
        return sorted(order[: self.settings.clients_per_round])

    def _make_round(self, server_round: int, grid: Grid, timeout: float) -> MetricRecord | None:
        """Make a round: one sum over its cohort."""
        made = super()._make_round(server_round, grid, timeout)
        self._note_spent(server_round, self._evaluations(server_round - 1))
        return made

    def _note_spent(self, rounds: int, evaluations: int) -> None:
        own = self.settings.privacy
        self.record.privacy = {"epsilon": self.plan.spent(rounds, evaluations), "delta": own.delta}

    def _asked(self, kind: str, public: Mapping[str, Tensor]) -> Question:
        """Return a question of one kind with its noise."""
        return Question(kind, public, self.plan.noise(kind))

    def _mean(self, told: Summed) -> dict[str, Tensor]:
        """Return the average of movements: every client counts as one."""
        return {name: one / len(told.clients) for name, one in told.sums.items()}

    def _prepare_scores(self, grid: Grid, names: Sequence[str]) -> Callable[[bool], Question] | None:
        """Return the question that clients are scored by: nothing but the anchor is published."""
        self._note_spent(self.record.server_round, self._evaluations(self.record.server_round))
        public = public_anchor(self.state.served_anchor)
        self._stand_for_all(public)
        self._score_noise = 0.0
        scored = self._asked("noised scores", public)
        return lambda seen: scored

    def _stand_for_all(self, public: Mapping[str, Tensor]) -> None:
        """Put one group into the state in the place of clients, which a newcomer's anchor is served by."""
        classes = len(self._fresh.head)
        self.group_cards = {GROUP: group_card(GROUP, torch.zeros(self._sizes.width), torch.zeros(classes))}
        self.state = replace(self.state, training=(GROUP,), class_statistics={}, told_before={}, published=public)
        self.state = self.state.with_service(strength=0.0, share=0.0, scale=1.0)

    def _scores(self, told: Summed, *, seen: bool) -> list[ClientScore]:
        """Return the mean scores of the group of seen or of unseen clients."""
        count, own = len(told.clients), self._sizes
        unit = units_of("noised scores", own.fresh, own.steps, own.clip)["accuracy"].length
        noise = self.plan.noise("noised scores") * unit / own.share**0.5 / count
        self._score_noise = max(self._score_noise, noise)
        most = {"accuracy": 1.0, "calibration": 1.0}
        sums = {name: one.clamp(0.0, count * most.get(name, math.inf)) for name, one in told.sums.items()}
        sums |= {"clients": torch.tensor(float(count)), "tests": torch.tensor(float(count))}
        return super()._scores(replace(told, sums={name: one[None] for name, one in sums.items()}), seen=seen)
