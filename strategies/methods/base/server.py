"""The server half of a federated LoRA method: pure functions from state and client results to new state.

A method must have what :class:`Method` lists; most extend :class:`BaseMethod`. What only some methods do is an optional
capability: a small protocol of its own, which the round loop looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from hyperlora.messages.plan import PLAIN_PLAN, LocalPlan
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainMetrics
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.personalization.class_statistics import ClassStatistics

T = TypeVar("T")


@dataclass(frozen=True)
class ClientUpdate:
    """A checked reply of one client of a cohort.

    Attributes:
        card: the client.
        start: the adapter that it was sent.
        end: the adapter after its local steps, class prior taken off.
        metrics: what it measured on the way.
        gradient: kind -> factors of the gradient of the frozen weights, where the method's plan asks for them.
        core: kind -> the trained R (blocks, r, r), where the method's plan was to train one.
        core_start: kind -> the R that it was sent.
        weight: factor on its share of an average; 1 unless a robust rule says otherwise.
    """

    card: ClientCard
    start: Adapter
    end: Adapter
    metrics: TrainMetrics
    gradient: Mapping[str, Tensor] = field(default_factory=dict)
    core: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 1.0
    core_start: Mapping[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """A federated LoRA method. It holds settings, never state, and no function changes its arguments."""

    @property
    def state_classes(self) -> Sequence[type]:
        """The dataclasses that a state is made of: what a checkpoint may contain."""

    def init(self, initial: Adapter) -> Any:
        """Return the state before round 1, given the fresh adapter that every client would start from."""

    def starts(self, state: Any, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
        """Return the adapter that each client is sent, to train or to use, in the order of ``cards``."""

    def plan(self, state: Any, card: ClientCard) -> LocalPlan:
        """Return how the client works with its start: what it trains, what travels, what it keeps."""

    def aggregate(self, state: Any, updates: Sequence[ClientUpdate]) -> Any:
        """Return the state after a round; ``updates`` is never empty and sorted by client-id."""

    def anchor(self, state: Any) -> Adapter | None:
        """Return the one global adapter, or None where the method has none."""


@runtime_checkable
class RegistersClients(Protocol):
    """A method that uses what is known of all clients."""

    def register(self, state: Any, cards: Mapping[str, ClientCard]) -> Any:
        """Return the state given the clients known so far; called when one is new or describes itself anew."""


@runtime_checkable
class ProbesStarts(Protocol):
    """A method that has clients score candidate starts on their validation split before an evaluation."""

    def probe_starts(
        self, state: Any, cards: Sequence[ClientCard], server_round: int
    ) -> Mapping[str, Mapping[str, Adapter]]:
        """Return client-id -> name of the candidate -> adapter."""

    def apply_probe_losses(self, state: Any, losses: Mapping[str, Mapping[str, float]]) -> Any:
        """Return the state given client-id -> name of the candidate -> validation loss in nats per label."""


@runtime_checkable
class TakesAdapters(Protocol):
    """A method that does something with a trained adapter before the round's last one has arrived."""

    def taker(self, state: Any, clients: int) -> Callable[[Adapter], None]:
        """Return what is given each checked adapter of a round of so many clients as it arrives."""


@runtime_checkable
class Serves(Protocol):
    """A method that gives a client another adapter to use than to train in a round."""

    def served(self, state: Any, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
        """Return the adapter that each client is sent to use, in the order of ``cards``."""


@runtime_checkable
class AsksStatistics(Protocol):
    """A method that has all clients, seen and unseen, describe their classes before an evaluation."""

    def anchor(self, state: Any) -> Adapter | None:
        """Return the adapter in whose feature space they do."""

    def statistics_rank(self, state: Any) -> int | None:
        """Return the most rank of the scatter within classes that clients send, or None where nothing is asked."""

    def with_statistics(self, state: Any, statistics: Mapping[str, ClassStatistics]) -> Any:
        """Return the state given client-id -> class statistics in the feature space of its anchor; others' stay."""


@runtime_checkable
class OffersAlternatives(Protocol):
    """A method that has other adapters than the start scored in the last evaluation."""

    def alternatives(self, state: Any, card: ClientCard) -> Mapping[str, Adapter]:
        """Return by name what the client could have been sent in place of its start."""


@runtime_checkable
class Reports(Protocol):
    """A method that has figures of its state for the metrics."""

    def report(self, state: Any) -> Mapping[str, float]:
        """Return figures of the state by name."""

    def switched_off(self) -> Sequence[str]:
        """Return the names of the method's modules that its settings switch off."""


@runtime_checkable
class Forgets(Protocol):
    """A method whose state holds something of single clients."""

    def forget(self, state: Any, client_id: str) -> Any:
        """Return the state without what it holds of a client, whether or not it holds anything."""


class BaseMethod:
    """Makes starts one by one and has clients train all that they are sent."""

    state_classes: Sequence[type] = (Adapter, Factors)

    def start(self, state: Any, card: ClientCard) -> Adapter:
        """Return the adapter that one client is sent."""
        raise NotImplementedError

    def starts(self, state: Any, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
        """Return the start of each client."""
        return [self.start(state, card) for card in cards]

    def plan(self, state: Any, card: ClientCard) -> LocalPlan:
        """Have all of the start sent, trained and sent back."""
        return PLAIN_PLAN


class SharedAdapterMethod(BaseMethod):
    """A method whose state is one adapter that every client starts from."""

    def init(self, initial: Adapter) -> Adapter:
        """Start from the fresh adapter."""
        return initial

    def start(self, state: Adapter, card: ClientCard) -> Adapter:
        """Send every client the shared adapter."""
        return state

    def anchor(self, state: Adapter) -> Adapter:
        """Return the shared adapter."""
        return state


def without(entries: Mapping[str, T], client_id: str) -> dict[str, T]:
    """Return entries by client-id but for one client's."""
    return {name: value for name, value in entries.items() if name != client_id}


def with_clients(method: Method, state: Any, cards: Mapping[str, ClientCard]) -> Any:
    """Return the state given the clients known, for a method that uses what is known of them."""
    return method.register(state, cards) if isinstance(method, RegistersClients) else state


def served_starts(method: Method, state: Any, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
    """Return the adapters that clients are sent to use: those of rounds, unless the method makes others."""
    return method.served(state, cards) if isinstance(method, Serves) else method.starts(state, cards)


def example_weights(updates: Sequence[ClientUpdate]) -> list[float]:
    """Return w_i = n_i / sum_j n_j, the weights of an average over clients, times the factors of a robust rule."""
    shares = [update.metrics.num_examples * update.weight for update in updates]
    return [share / sum(shares) for share in shares]
