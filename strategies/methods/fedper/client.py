"""FedPer, FedRep and FedBABU at the client: the received factors under the client's own head.

FedPer trains factors and head at once (arXiv 1912.00818, algorithm 1), FedRep the head for some of the steps and then
the factors (arXiv 2102.07078, algorithm 1), FedBABU the factors alone (arXiv 2106.06042, algorithm 1). At use FedRep's
clients adapt the head, the others all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter
from strategies.methods.base.client import ClientHalf, Composition, LocalClient, Trained
from strategies.methods.fedper.config import FedPerSettings


class FedPerClient(ClientHalf):
    """Keeps what it trained, of which it uses the head."""

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the received factors under the client's head."""
        trained = self.train_parts(client, self.compose(client, start, plan), steps)
        client.keep(trained.end)
        return trained

    def train_parts(self, client: LocalClient, composition: Composition, steps: int) -> Trained:
        """Train factors and head at once."""
        return client.train(composition, steps)

    def compose(self, client: LocalClient, adapter: Adapter, plan: LocalPlan) -> Composition:
        """Return the received factors under the kept head; a client that kept none uses the received one."""
        kept = client.kept()
        return Composition(adapter if kept is None else Adapter(adapter.low_rank, kept.head), plan.base)


@dataclass(frozen=True)
class FedRepClient(FedPerClient):
    """Trains the head for ``head_share`` of the steps, then the factors."""

    head_share: float

    def train_parts(self, client: LocalClient, composition: Composition, steps: int) -> Trained:
        """Train the head under the received factors, then the factors under that head."""
        first = round(self.head_share * steps)
        head = client.train(composition, first, trains="head")
        body = client.train(Composition(head.end, composition.base), steps - first, trains="body")
        before = head.metrics
        metrics = replace(body.metrics, start_loss=before.start_loss, start_accuracy=before.start_accuracy)
        return replace(body, metrics=metrics)


class FedBabuClient(ClientHalf):
    """Trains the factors and keeps nothing."""

    def train(self, client: LocalClient, start: Adapter, plan: LocalPlan, steps: int) -> Trained:
        """Train the factors under the fixed head."""
        return client.train(Composition(start, plan.base), steps, trains="body")


def build(config: RunConfig) -> ClientHalf:
    """Return the client half of the form that ``fedper.form`` names."""
    settings = config.of(FedPerSettings)
    if settings.form == "fedbabu":
        return FedBabuClient()
    return FedPerClient() if settings.form == "fedper" else FedRepClient(settings.head_share)
