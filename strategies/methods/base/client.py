"""The client half of a federated LoRA method: what a client makes of the adapters it is sent.

A method whose clients train all they are sent and keep nothing needs no client half: :class:`ClientHalf` is theirs. A
method that differs has a subclass in the ``client.py`` of its folder, with ``build(config)`` to make it. Clients
import this part of ``strategies`` and nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.train import TrainMetrics
from models.adapters.adapter import Adapter
from models.adapters.training import Penalty, TokenSet

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

MakePenalty = Callable[["AdaptedModel"], Penalty]


@dataclass(frozen=True)
class Composition:
    """What a client loads into its model.

    Attributes:
        adapter: is trained or scored.
        base: a product of any rank that is added to the frozen weights meanwhile; None adds nothing.
    """

    adapter: Adapter
    base: Adapter | None = None


@dataclass(frozen=True)
class Trained:
    """The result of local steps.

    Attributes:
        end: the adapter, class prior taken off.
        metrics: what was measured on the way.
        core: kind -> R (blocks, r, r), where the plan was to train one.
        gradient: kind -> factors of the gradient of the frozen weights, where the plan asks for them.
    """

    end: Adapter
    metrics: TrainMetrics
    core: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor] = field(default_factory=dict)


def steps_of_both(steps: int, budget: str) -> tuple[int, int]:
    """Return the local steps of the two adapters of a client that trains two.

    Args:
        steps: the local budget K.
        budget: ``full`` gives K to each; ``equal`` gives K to both together, the first getting the odd step.
    """
    return (steps, steps) if budget == "full" else (steps - steps // 2, steps // 2)


class LocalClient(Protocol):
    """One client, as the client half of a method sees it: its model, its samples and what it keeps."""

    @property
    def model(self) -> AdaptedModel:
        """The frozen backbone with the adapter that is loaded."""

    def tokens(self, split: str) -> TokenSet:
        """Return the samples of ``train``, ``validation`` or ``test`` behind the frozen prefix of the backbone."""

    def with_prior(self, adapter: Adapter) -> Adapter:
        """Return the adapter with the client's class prior in the bias of the head."""

    def kept(self) -> Adapter | None:
        """Return the adapter that the client kept last, or None."""

    def keep(self, adapter: Adapter) -> None:
        """Keep ``adapter`` at the client, in place of the one before; it is never sent."""

    def train(
        self, composition: Composition, steps: int, make_penalty: MakePenalty | None = None, *, trains: str = ""
    ) -> Trained:
        """Train ``composition`` for ``steps`` optimiser steps as the plan of the request says.

        Args:
            composition: what is loaded; its adapter is trained.
            steps: optimiser steps; every call begins with a fresh optimiser and the same order of batches.
            make_penalty: given the loaded model, returns a function whose value is added to the loss at every step.
            trains: what is trained, in place of what the plan says; empty follows the plan.
        """


class ClientHalf:
    """Trains all of what is received and keeps nothing."""

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received start for the local budget and return what may be sent back.

        Args:
            client: the client at work.
            start: the adapter that it received.
            plan: how it is to work with it.
            steps: optimiser steps K.
        """
        return client.train(Composition(start, plan.base), steps)

    def compose(self, client: LocalClient, adapter: Adapter, plan: LocalPlan) -> Composition:
        """Return what the client uses in place of a received adapter; asked only where the plan is personal.

        Args:
            client: the client at work.
            adapter: what it received.
            plan: the plan that came with it.
        """
        return Composition(adapter, plan.base)
