"""The contract of a federated LoRA method: pure functions from state and client results to new state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from hyperlora.messages.plan import PLAIN_PLAN, LocalPlan
from hyperlora.messages.signature import ClientCard
from hyperlora.messages.train import TrainMetrics
from models.adapters.adapter import Adapter
from models.adapters.gradient import NO_GRADIENT, GradientSpec
from models.lowrank.factors import Factors


@dataclass(frozen=True)
class ClientUpdate:
    """What one client of a cohort sent back, checked.

    Attributes:
        card: the client.
        start: the adapter that it was sent.
        end: the adapter after its local steps, prior taken off.
        metrics: what it measured on the way.
        gradient: what the method's ``wants`` asked for of the validation gradient at the start; empty where nothing.
        core: the trained R by kind, where the method's plan was to train one.
        weight: what its share of an average is multiplied by; 1 unless a robust rule says otherwise.
    """

    card: ClientCard
    start: Adapter
    end: Adapter
    metrics: TrainMetrics
    gradient: Mapping[str, Tensor] = field(default_factory=dict)
    core: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 1.0


class Method(Protocol):
    """A federated LoRA method. It holds its settings, never its state; no function changes its arguments."""

    @property
    def wants(self) -> GradientSpec:
        """What train replies are to tell of the validation gradient at the start."""

    @property
    def state_classes(self) -> Sequence[type]:
        """The dataclasses that a state is made of: what a checkpoint may contain."""

    def init(self, initial: Adapter) -> Any:
        """Return the state before round 1 from the fresh adapter that every client would start from."""

    def register(self, state: Any, cards: Mapping[str, ClientCard]) -> Any:
        """Return the state after the server learned which clients there are (called when that changes)."""

    def start(self, state: Any, card: ClientCard) -> Adapter:
        """Return the adapter that ``card``'s client is sent, to train or to use."""

    def starts(self, state: Any, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
        """Return the starts of many clients, as :meth:`start` makes them one by one, in the order of ``cards``."""

    def plan(self, state: Any, card: ClientCard) -> LocalPlan:
        """Return how the client is to work with its start: what it trains, what travels, what it keeps."""

    def aggregate(self, state: Any, updates: Sequence[ClientUpdate]) -> Any:
        """Return the state after a round; ``updates`` is never empty and sorted by client-id."""

    def anchor(self, state: Any) -> Adapter | None:
        """Return the one global adapter, or None where the method has none."""

    def alternatives(self, state: Any, card: ClientCard) -> Mapping[str, Adapter]:
        """Return by name further adapters for the client, to be scored beside its start in the last evaluation."""

    def rehearsals(
        self, state: Any, cards: Sequence[ClientCard], server_round: int
    ) -> Mapping[str, Mapping[str, Adapter]]:
        """Return client-id -> name -> an adapter to be scored on the client's validation split before an evaluation."""

    def rehearsed(self, state: Any, losses: Mapping[str, Mapping[str, float]]) -> Any:
        """Return the state after those scores came in: client-id -> name -> validation loss (nats per label)."""

    def report(self, state: Any) -> Mapping[str, float]:
        """Return figures of the state for the metrics, by name."""

    def switched_off(self) -> Sequence[str]:
        """Return the names of the method's modules that the settings switch off."""


class MakesStarts(Protocol):
    """What makes starts one by one."""

    def start(self, state: Any, card: ClientCard) -> Adapter:
        """Return the adapter that ``card``'s client is sent, to train or to use."""


class Plain:
    """What a method is that wants no gradient, has clients train all they are sent and has nothing to report."""

    wants = NO_GRADIENT
    state_classes: Sequence[type] = (Adapter, Factors)

    def register(self, state: Any, cards: Mapping[str, ClientCard]) -> Any:
        """Return the state as it is: the method knows nothing of its clients but what they send."""
        return state

    def starts(self: MakesStarts, state: Any, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
        """Make the starts one by one."""
        return [self.start(state, card) for card in cards]

    def plan(self, state: Any, card: ClientCard) -> LocalPlan:
        """Have all of the start sent, trained and sent back."""
        return PLAIN_PLAN

    def alternatives(self, state: Any, card: ClientCard) -> Mapping[str, Adapter]:
        """Return none."""
        return {}

    def rehearsals(
        self, state: Any, cards: Sequence[ClientCard], server_round: int
    ) -> Mapping[str, Mapping[str, Adapter]]:
        """Return none."""
        return {}

    def rehearsed(self, state: Any, losses: Mapping[str, Mapping[str, float]]) -> Any:
        """Return the state as it is."""
        return state

    def report(self, state: Any) -> Mapping[str, float]:
        """Return none."""
        return {}

    def switched_off(self) -> Sequence[str]:
        """Return none."""
        return ()


def example_weights(updates: Sequence[ClientUpdate]) -> list[float]:
    """Return w_i = n_i / sum_j n_j, the usual weights of an average over clients, times what a robust rule says."""
    shares = [update.metrics.num_examples * update.weight for update in updates]
    return [share / sum(shares) for share in shares]
