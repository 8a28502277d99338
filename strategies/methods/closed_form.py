"""What methods share whose heads follow from class statistics in closed form: nothing is trained in rounds.

Clients describe their classes in the feature space of the frozen backbone
(:class:`models.personalization.class_statistics.ClassStatistics`, the scatter whole and not as a low-rank factor).
Unseen clients do too, but only those that train shape what others get. One round is enough
(``federation.rounds = 1``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import HEAD, Adapter
from models.lowrank.factors import Factors
from models.personalization.class_statistics import ClassStatistics
from strategies.methods.base.server import BaseMethod, ClientUpdate, without


@dataclass(frozen=True)
class DescribedState:
    """What is known of the clients' classes.

    Attributes:
        initial: the fresh adapter.
        training: client-ids of the clients that train.
        clusters: client-id -> cluster, where the method divides clients.
        statistics: client-id -> what its classes look like.
    """

    initial: Adapter
    training: Sequence[str] = ()
    clusters: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, ClassStatistics] = field(default_factory=dict)

    def described(self) -> dict[str, ClassStatistics]:
        """Return the statistics of the clients that train, by client-id."""
        return {name: self.statistics[name] for name in self.training if name in self.statistics}


class ClosedForm(BaseMethod):
    """Sends the fresh adapter in rounds, in which nobody trains, and serves heads made of statistics.

    ``adapts`` is what a client trains that adapts what it is served.
    """

    state_classes: Sequence[type] = (DescribedState, ClassStatistics, Adapter, Factors)
    adapts = HEAD

    def heads(self, state: DescribedState, cards: Sequence[ClientCard]) -> Sequence[Tensor]:
        """Return a head (classes, width + 1) for each client; there are statistics of a client that trains."""
        raise NotImplementedError

    def global_head(self, state: DescribedState) -> Tensor:
        """Return a head (classes, width + 1) for everybody; there are statistics of a client that trains."""
        raise NotImplementedError

    def init(self, initial: Adapter) -> DescribedState:
        """Start knowing nothing of any class."""
        return DescribedState(initial)

    def register(self, state: DescribedState, cards: Mapping[str, ClientCard]) -> DescribedState:
        """Remember who trains."""
        return replace(state, training=sorted(name for name, card in cards.items() if card.trains))

    def start(self, state: DescribedState, card: ClientCard) -> Adapter:
        """Send the fresh adapter."""
        return state.initial

    def plan(self, state: DescribedState, card: ClientCard) -> LocalPlan:
        """Have nothing sent back."""
        return LocalPlan(self.adapts, down=(HEAD,), up=())

    def aggregate(self, state: DescribedState, updates: Sequence[ClientUpdate]) -> DescribedState:
        """Return the state as it is."""
        return state

    def statistics_rank(self, state: DescribedState) -> int:
        """Have the scatter sent whole: its rank is at most the width of the features."""
        return state.initial.head.shape[1] - 1

    def with_statistics(self, state: DescribedState, statistics: Mapping[str, ClassStatistics]) -> DescribedState:
        """Remember what the classes of clients look like."""
        return replace(state, statistics={**state.statistics, **statistics})

    def served(self, state: DescribedState, cards: Sequence[ClientCard]) -> list[Adapter]:
        """Return the frozen backbone under each client's head; the fresh head while nothing is known of any class."""
        if not state.described():
            return [state.initial] * len(cards)
        return [Adapter(state.initial.low_rank, head) for head in self.heads(state, cards)]

    def forget(self, state: DescribedState, client_id: str) -> DescribedState:
        """Drop what is known of the client's classes; heads are made again from the others'."""
        return replace(
            state,
            training=[name for name in state.training if name != client_id],
            clusters=without(state.clusters, client_id),
            statistics=without(state.statistics, client_id),
        )

    def anchor(self, state: DescribedState) -> Adapter:
        """Return the frozen backbone under the head for everybody."""
        return Adapter(state.initial.low_rank, self.global_head(state)) if state.described() else state.initial


def require_no_noise(config: RunConfig) -> None:
    """Raise ConfigError for a private run: class statistics carry no noise, so clients would not send any."""
    if config.privacy.noised:
        raise ConfigError(
            f"method '{config.method}' needs class statistics, which clients of a private run do not send"
        )
