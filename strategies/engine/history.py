"""Who trains in a round, and what the clients of a run were asked and released so far."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from hyperlora.messages.signature import ClientCard
from strategies.engine.privacy_ledger import PrivacyLedger, participations


def sample_cohort(client_ids: Iterable[str], size: int, *, seed: int, server_round: int) -> list[str]:
    """Return ``size`` of the clients (all where there are fewer), sorted by client-id.

    The draw depends on the ids, ``seed`` and ``server_round`` alone, so a resumed run draws what an
    uninterrupted one would have drawn.
    """
    names = sorted(client_ids)
    chooser = random.Random(f"cohort:{seed}:{server_round}")
    return sorted(chooser.sample(names, min(size, len(names))))


@dataclass
class History:
    """Grows by every round and goes into every checkpoint.

    Attributes:
        cohorts: round -> the client-ids that were asked to train.
        signatures: client-id -> how many it released, where it was more than one.
        lengths: client-id -> norm of its last update, before clipping.
        trained: client-id -> what was trained in that update (:class:`~hyperlora.messages.plan.LocalPlan`).
        sensitivity: module -> its share of the sensitivity of the loss; empty if clients do not report it.
        forgotten: client-id -> how often it was asked in rounds that were repeated later; these spent privacy as well.
    """

    cohorts: dict[int, Sequence[str]] = field(default_factory=dict)
    signatures: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)
    trained: dict[str, str] = field(default_factory=dict)

    def copy(self) -> History:
        """Return one that no later round changes."""
        return History(*(dict(getattr(self, one.name)) for one in fields(self)))

    @property
    def asked(self) -> dict[str, int]:
        """How often each client was asked to train, also in rounds that were made again."""
        return dict(Counter(participations(self.cohorts.values())) + Counter(self.forgotten))

    def note_cohort(self, server_round: int, cohort: Sequence[str]) -> None:
        """Count the clients of a round; one that is made again counts again."""
        self.forgotten = dict(Counter(self.forgotten) + Counter(self.cohorts.get(server_round, ())))
        self.cohorts[server_round] = cohort

    def recall(self, sent: Iterable[Sequence[str]]) -> None:
        """Count all cohorts that were ever ``sent`` a message, whatever the checkpoint knows of them."""
        lost = Counter(participations(sent)) - Counter(participations(self.cohorts.values()))
        self.forgotten = dict(Counter(self.forgotten) | lost)

    def note_movements(self, lengths: Mapping[str, float], trains: str) -> None:
        """Take over the lengths of a round's movements, in which clients trained what ``trains`` says."""
        self.lengths |= lengths
        self.trained |= dict.fromkeys(lengths, trains)

    def lengths_of(self, trains: str) -> dict[str, float]:
        """Return the norms of last updates that others can be compared with: those that trained the same parts."""
        return {name: one for name, one in self.lengths.items() if self.trained.get(name, trains) == trains}

    def note_signature(self, client_id: str) -> None:
        """Count another signature of a client."""
        self.signatures[client_id] = self.signatures.get(client_id, 1) + 1

    def without(self, client_id: str) -> History:
        """Return one that knows no movement of a client any more; what it was asked still costs privacy and stays."""
        after = self.copy()
        after.lengths.pop(client_id, None)
        after.trained.pop(client_id, None)
        return after

    def within_budget(self, cards: Mapping[str, ClientCard], ledger: PrivacyLedger) -> dict[str, ClientCard]:
        """Return the clients that can release one more adapter without spending more than their privacy budget."""
        if not ledger.settings.epsilon:
            return dict(cards)
        asked = self.asked
        return {
            name: card
            for name, card in cards.items()
            if ledger.affords(self.signatures.get(name, 1), asked.get(name, 0) + 1)
        }

    def spent(self, ledger: PrivacyLedger) -> dict[str, float]:
        """Return what the client that told most has spent of its privacy; empty where no client adds noise."""
        return ledger.figures(self.asked, self.signatures)
