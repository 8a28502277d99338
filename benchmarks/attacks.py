"""Clients that send what they should not: a seeded share of the training clients of a run, in process.

``noise`` sends its start plus Gaussian noise ten times as long as its honest movement, ``sign-flip`` the movement
reversed, ``scale-100`` the movement a hundred times, ``label-flip`` what it learned from labels counted from the other
end (y becomes C - 1 - y). The first three as in Blanchard et al. 2017 and Bagdasaryan et al. 2020. What clients say of
themselves is in :mod:`benchmarks.liars`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message

from benchmarks.liars import LIES, LyingApp
from client_app import runtime
from hyperlora.config.schema import RunConfig
from hyperlora.data.federation import ClientData, Federation, Samples
from hyperlora.messages.train import TrainRequest
from hyperlora.seeds import derive_seed
from hyperlora.task import build_federation

NOISE_LENGTH = 10.0
FACTORS = {"sign-flip": -1.0, "scale-100": 100.0, "collude": 2.0}
"""What a movement is multiplied with."""
FLIPPED = ("label-flip", "collude")
ATTACKS = ("noise", "sign-flip", "scale-100", "label-flip", *LIES)
App = Callable[[Message, Context], Message]


def choose_attackers(federation: Federation, share: float, seed: int) -> frozenset[str]:
    """Return a share of the clients that train, drawn by ``seed``, rounded to whole clients."""
    training = [name for name in federation.client_ids if federation.load(name).trains]
    count = round(share * len(training))
    return frozenset(random.Random(derive_seed(seed, "attackers")).sample(training, count))


@dataclass(frozen=True)
class AttackedApp:
    """A ClientApp some of whose clients tamper with what they trained.

    Attributes:
        app: the honest app.
        kind: one of :data:`ATTACKS`.
        attackers: ids of the clients that attack.
        seed: of the noise.
    """

    app: App
    kind: str
    attackers: frozenset[str]
    seed: int

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the app does, then tamper with an attacker's train reply."""
        reply = self.app(message, context)
        moves = self.kind == "noise" or self.kind in FACTORS
        if message.metadata.message_type != TrainRequest.TYPE or not moves or reply.has_error():
            return reply
        config = message.content.config_records["config"]
        if config["client_id"] in self.attackers:
            place = (str(config["client_id"]), str(config["server_round"]))
            chance = np.random.default_rng(derive_seed(self.seed, *place))
            reply.content["arrays"] = self._tampered(message, reply, chance)
        return reply

    def _tampered(self, message: Message, reply: Message, chance: np.random.Generator) -> ArrayRecord:
        starts = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
        ends = {name: array.numpy() for name, array in reply.content.array_records["arrays"].items()}
        movements = {name: end - starts[name] for name, end in ends.items()}
        if self.kind == "noise":
            size = sum(one.size for one in movements.values())
            deviation = NOISE_LENGTH * np.sqrt(sum(float((one**2).sum()) for one in movements.values()) / size)
            moved = {name: deviation * chance.standard_normal(one.shape) for name, one in movements.items()}
        else:
            moved = {name: FACTORS[self.kind] * one for name, one in movements.items()}
        return ArrayRecord({name: Array((starts[name] + one).astype(np.float32)) for name, one in moved.items()})


@dataclass(frozen=True)
class FlippedFederation:
    """A federation in which the attackers' training and validation labels are counted from the other end."""

    inner: Federation
    attackers: frozenset[str]

    @property
    def client_ids(self) -> tuple[str, ...]:
        """Return the inner federation's."""
        return self.inner.client_ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the inner federation's."""
        return self.inner.class_names

    def load(self, client_id: str) -> ClientData:
        """Return the client's data, an attacker's with wrong labels."""
        data = self.inner.load(client_id)
        if client_id not in self.attackers:
            return data
        return replace(data, train=self._flipped(data.train), validation=self._flipped(data.validation))

    def _flipped(self, samples: Samples) -> Samples:
        return Samples(samples.inputs, len(self.class_names) - 1 - samples.labels)


@contextmanager
def attacked(app: App, config: RunConfig, kind: str, share: float) -> Iterator[tuple[App, frozenset[str]]]:
    """Yield ``app`` with a share of the clients attacking as ``kind`` says, and who they are; "" is nobody."""
    if not kind:
        yield app, frozenset()
        return
    federation = build_federation(config.data, image_size=config.model.image_size, seed=config.seed)
    attackers = choose_attackers(federation, share, config.seed)
    victims = neighbours_to_be(federation, attackers)
    liar = LyingApp(app, kind, config, victims, len(federation.class_names)) if kind in LIES else app
    with poisoned_data(attackers) if kind in FLIPPED else nullcontext():
        yield AttackedApp(liar, kind, attackers, config.seed), attackers


def neighbours_to_be(federation: Federation, attackers: frozenset[str]) -> dict[str, str]:
    """Return for every attacker an unseen client that it may pose beside, all of them in turn; itself without any."""
    unseen = [name for name in federation.client_ids if not federation.load(name).trains]
    return {name: unseen[index % len(unseen)] if unseen else name for index, name in enumerate(sorted(attackers))}


@contextmanager
def poisoned_data(attackers: frozenset[str]) -> Iterator[None]:
    """Have this process's clients open a :class:`FlippedFederation` while the context lasts."""

    def build(*args: Any, **options: Any) -> FlippedFederation:
        return FlippedFederation(build_federation(*args, **options), attackers)

    runtime._open_parts.cache_clear()
    try:
        with patch.object(runtime, "build_federation", build):
            yield
    finally:
        runtime._open_parts.cache_clear()
