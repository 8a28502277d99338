"""The Flower Strategy that hosts a federated LoRA method, and the one round loop that all methods share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from models.adapters.rank_budget import NO_WORTH, Worth, in_proportion
from strategies.engine.checkpoint import Checkpoint, capture, restore
from strategies.engine.common_start import start_from_data
from strategies.engine.drift import note_returned, take_over
from strategies.engine.evaluation import Evaluation, means_of
from strategies.engine.history import History, sample_cohort
from strategies.engine.preparation import Preparation
from strategies.engine.privacy_ledger import PrivacyLedger
from strategies.engine.records import ClientScore, RoundRecord, training_figures
from strategies.engine.requests import RequestMaker
from strategies.engine.settings import RoundSettings
from strategies.engine.training import Training
from strategies.engine.turns import in_turn, require_turns
from strategies.federation.registrar import Registrar
from strategies.federation.roster import FederationError, Roster
from strategies.federation.transport import Exchange
from strategies.methods.base.server import AsksStatistics, Method, ProbesStarts, Reports, with_clients

log = logging.getLogger(__name__)


class LoraStrategy(Strategy):
    """Runs a :class:`strategies.methods.base.server.Method` by Flower's four hooks.

    Every client gets a message of its own with an adapter of its own. The hooks may be driven by :meth:`start` or by
    any other Flower loop; ``arrays`` is not what clients receive, it is the method's anchor (or empty).

    Args:
        method: the algorithm.
        initial: the fresh adapter before round 1.
        registrar: who takes part.
        settings: cohort size, budget, deadlines.
        on_cohort: called with a round and its cohort before anything is sent to them; what it keeps goes to
            :meth:`History.recall` when the run is resumed, so that no release is forgotten with its round.
    """

    def __init__(
        self,
        method: Method,
        *,
        initial: Adapter,
        registrar: Registrar,
        settings: RoundSettings,
        on_cohort: Callable[[int, Sequence[str]], None] = lambda server_round, cohort: None,
    ) -> None:
        self.on_cohort = on_cohort
        self.method, self.registrar, self.settings = method, registrar, settings
        self._fresh = initial
        self.state: Any = method.init(initial)
        self.scores: list[ClientScore] = []
        self.record = RoundRecord(0)
        self.history = History()
        self.ledger = PrivacyLedger(settings.privacy)
        self._explained: Worth = NO_WORTH
        self._requests = RequestMaker(method, registrar, settings, self._worth)
        self._scoring: Evaluation | None = None
        self._training = Training(self._requests)
        self._evaluation: Exchange[EvaluateBatch] = Exchange()
        self._sent_at = 0.0
        self._last_round, self._joined = settings.num_rounds, False

    @property
    def roster(self) -> Roster:
        """The clients and nodes of the run."""
        return self.registrar.roster

    @property
    def known_cards(self) -> Mapping[str, ClientCard]:
        """Whom the method's state and the results know, by client-id."""
        return self.roster.cards

    def summary(self) -> None:
        """Log what is about to run."""
        log.info("method %s, %s", type(self.method).__name__, asdict(self.settings))

    def join(self, grid: Grid) -> None:
        """Wait for the clients that the run needs.

        Raises:
            FederationError: too few of them came or train, or their domains cannot take turns.
        """
        settings = self.settings
        self.registrar.wait_for(
            grid,
            wanted=settings.min_clients,
            join_timeout=settings.join_timeout,
            reply_timeout=settings.round_timeout,
        )
        training = sum(card.trains for card in self.roster.reachable().values())
        if training < settings.clients_per_round:
            raise FederationError(
                f"federation.clients-per-round is {settings.clients_per_round}, but only {training} clients train "
                f"({len(self.roster.reachable())} joined); lower it or add clients"
            )
        require_turns(self.roster.cards.values(), rounds=settings.domain_rounds, least=settings.min_replies)
        self._joined = True
        self._register()

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Draw the cohort and make for each of its clients a message with a start of its own."""
        self._begin(server_round, grid)
        if server_round == 1:
            start, self._explained = start_from_data(self._fresh, self._requests, grid, self.record)
            if start is not self._fresh:
                self.state = self.method.init(start)
                self._register()
        changed = self.roster.take_changed()
        for name in changed:
            self.history.note_signature(name)  # it was released again
        note_returned(self.record, self.roster.cards, changed)
        turn = self.settings.domain_rounds
        least, known = self.settings.min_replies, self.roster.cards.values()
        willing = in_turn(self._willing(), known, rounds=turn, least=least, server_round=server_round)
        at_work = self._training.at_work
        clients = {name: card for name, card in willing.items() if name not in at_work}
        size = self.settings.clients_per_round - len(at_work)
        self.record.cohort = sample_cohort(clients, size, seed=self.settings.seed, server_round=server_round)
        self.history.note_cohort(server_round, self.record.cohort)
        self.on_cohort(server_round, self.record.cohort)
        cohort = {name: clients[name] for name in self.record.cohort}
        return self._training.messages(self.state, cohort, self.record)

    def _begin(self, server_round: int, grid: Grid) -> None:
        """Begin a round: wait for the clients that the run needs, or ask nodes that are new for theirs."""
        self.record = RoundRecord(server_round)
        if not self._joined:
            self.join(grid)
        if self.registrar.await_training(grid, self.settings.join_timeout, self.settings.round_timeout):
            self._register()

    def _spent(self) -> bool:
        """Tell whether every client that trains, connected or away, has spent its privacy budget."""
        training = {name: card for name, card in self.roster.cards.items() if card.trains}
        return bool(training) and not self.history.within_budget(training, self.ledger)

    def aggregate_train(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, leave out what is broken or missing, and hand the rest to the method.

        Fewer usable replies than ``min_replies`` change nothing: neither the state nor what is known of the clients.
        """
        updates = self._training.updates(replies, self.record, self.history)
        if take_over(self.record, self.roster.cards, [update.card for update in updates]):
            self._register()
        if updates:
            self.state = self.method.aggregate(self.state, updates)
            sends_metrics = not self.settings.privacy.keeps_scores
            self.record.training = training_figures(updates, sends_metrics=sends_metrics)
            self._report()
            self.record.add_seconds("training", sum(update.metrics.seconds for update in updates))
        self.record.privacy = self.history.spent(self.ledger)
        self.record.add_seconds("aggregating", time.perf_counter() - self._training.since)
        return self._requests.anchor_arrays(self.state), MetricRecord({"num_clients": len(updates)})

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Ask every reachable client, seen and unseen, what the adapter made for it is worth.

        Before that, clients describe their classes to a method that asks for it, and score the candidates of one that
        probes its starts. A private run asks for no class statistics; where clients keep scores back, they get their
        adapters by this message and tell nothing.
        """
        self._scoring = self._prepared(grid, last=self._last_round == server_round)
        self._evaluation = self._scoring.exchange(self.state, self._scoring.cards)
        self._sent_at = time.perf_counter()
        return self._evaluation.messages()

    def _prepared(self, grid: Grid, *, last: bool) -> Evaluation:
        """Have clients describe their classes and score candidates, and return the evaluation that follows."""
        told, method, before = not self.settings.privacy.keeps_scores, self.method, self.state
        evaluation = Evaluation(self._requests, self.record, last=last and told, everyone=last)
        preparation = Preparation(self._requests, evaluation.cards, grid, self.record)
        if not self.ledger.on and isinstance(method, AsksStatistics):
            self.state = preparation.with_statistics(self.state, method)
        if told and isinstance(method, ProbesStarts):
            self.state = preparation.with_probe_losses(self.state, method)
        if self.state is not before:
            self._report()
        return evaluation

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect the scores; nothing of an evaluation changes the method's state."""
        if self._scoring is None:
            return None
        answers = self._evaluation.settle(replies, EvaluateReplies.decode)
        self.record.add_seconds("evaluating", time.perf_counter() - self._sent_at)
        self.scores = self._scoring.scores(answers)
        return means_of(self.record.evaluation)

    def _evaluate(self, grid: Grid, timeout: float, *, last: bool) -> MetricRecord | None:
        """Do what the two hooks of an evaluation do, some hundred clients at a time."""
        evaluation = self._prepared(grid, last=last)
        self.scores = evaluation.scores(evaluation.ask(self.state, grid, timeout))
        return means_of(self.record.evaluation)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        start_round: int = 1,
        on_round: Callable[[RoundRecord], None] = lambda record: None,
    ) -> Result:
        """Run rounds ``start_round`` to ``num_rounds``.

        Args beyond Flower's: ``start_round`` is the first round to make; ``on_round`` is called with the record of
        every round once it is complete (metrics, checkpoint).
        """
        self.summary()
        self._last_round = num_rounds
        arrays, result = initial_arrays or ArrayRecord(), Result()
        self.join(grid)
        for server_round in range(start_round, num_rounds + 1):
            metrics = self._make_round(server_round, grid, timeout)
            arrays = result.arrays = self._requests.anchor_arrays(self.state) or arrays
            if metrics is not None:
                result.train_metrics_clientapp[server_round] = metrics
            if self._spent():
                log.warning("round %d is the last: every client has spent its privacy budget", server_round)
                self._last_round = server_round
            if server_round % self.settings.evaluate_every == 0 or server_round == self._last_round:
                scored = self._evaluate(grid, timeout, last=server_round == self._last_round)
                if scored is not None:
                    result.evaluate_metrics_clientapp[server_round] = scored
            if evaluate_fn and (central := evaluate_fn(server_round, arrays)) is not None:
                result.evaluate_metrics_serverapp[server_round] = central
            on_round(self.record)
            if server_round == self._last_round:
                break
        return result

    def _make_round(self, server_round: int, grid: Grid, timeout: float) -> MetricRecord | None:
        """Have a cohort train and hand what comes back to the method."""
        messages = self.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        return self.aggregate_train(server_round, self._training.replies(grid, messages, timeout))[1]

    def final_adapters(self) -> dict[str, tuple[ClientCard, Adapter]]:
        """Return for every client known its card and the adapter that the method makes for it now, base included.

        What a client keeps to itself is not in it.
        """
        cards = dict(sorted(self.known_cards.items()))
        return {name: (cards[name], start.whole()) for name, start in self._requests.served(self.state, cards).items()}

    def checkpoint(self) -> Checkpoint:
        """Return everything that a run goes on from after the round that was made last."""
        return Checkpoint(
            self.record.server_round,
            self.state,
            dict(self.known_cards),
            list(self.scores),
            capture(),
            self.history.copy(),
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take over what :meth:`checkpoint` returned; the next round is ``checkpoint.server_round + 1``."""
        self.state, self.scores = checkpoint.state, list(checkpoint.scores)
        self.record, self.history = RoundRecord(checkpoint.server_round), checkpoint.history.copy()
        self.roster.cards.update(checkpoint.cards)
        restore(checkpoint.random_states)

    def _worth(self) -> Worth:
        """Return what components are worth under a budget of bytes, where that is not left to the spectrum."""
        if told := self.history.sensitivity:
            return in_proportion(told, self._fresh.rank)
        return self._explained if self.record.server_round == 1 else NO_WORTH

    def _register(self) -> None:
        self.state = with_clients(self.method, self.state, self.roster.cards)

    def _report(self) -> None:
        if isinstance(self.method, Reports):
            self.record.method = dict(self.method.report(self.state))

    def _willing(self) -> dict[str, ClientCard]:
        """Return the clients that can be reached, train, and have not spent their privacy budget."""
        clients = {name: card for name, card in self.roster.reachable().items() if card.trains}
        return self.history.within_budget(clients, self.ledger)
