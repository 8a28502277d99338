"""Clients that lie about themselves: in their card, in the statistics of their classes, in their scores.

``outlier`` says that its features have mean 100, ``frequencies`` that all its samples are of one class, ``huge`` that
its classes lie as far apart as the wire carries, ``swapped`` shows each class with the mean of the next, ``counts``
does so for a thousand times the samples, ``spread`` says that samples spread along the line between two classes and
nowhere else, ``scores`` turns its probe losses upside down. ``collude`` is the worst of
all that we found at once: attackers train on labels counted from the other end and send twice the movement, describe
the classes of that, lie about their scores, and show the features of an unseen client each, to be its neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, Context, Message
from numpy.typing import NDArray

from client_app.runtime import open_runtime
from hyperlora.config.schema import RunConfig
from hyperlora.messages.batch import EvaluateBatch
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.messages.signature import SignatureRequest
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.train import TrainRequest

LIES = ("outlier", "frequencies", "huge", "swapped", "counts", "spread", "scores", "collude")
FAR, LARGEST, MORE, WORST_LOSS, RARE = 100.0, 6e4, 1000, 20.0, 1e-9
App = Callable[[Message, Context], Message]
Vector = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LyingApp:
    """A ClientApp some of whose clients lie as ``kind`` says.

    Attributes:
        app: the honest app.
        kind: one of :data:`LIES`.
        config: of the run.
        victims: attacker -> the client whose features it shows, where it shows another's.
    """

    app: App
    kind: str
    config: RunConfig
    victims: Mapping[str, str]
    classes: int
    _shown: dict[str, Vector] = field(default_factory=dict)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the app does, then tell a lie in place of what an attacker said."""
        reply = self.app(message, context)
        if reply.has_error():
            return reply
        kind, config = message.metadata.message_type, message.content.config_records["config"]
        if kind == SignatureRequest.TYPE:
            self._lie_in_cards(reply)
        elif config["client_id"] in self.victims:
            ANSWERS[kind](self, message, reply)
        return reply

    def _lie_in_cards(self, reply: Message) -> None:
        config: Any = reply.content["config"]
        arrays = reply.content.array_records["arrays"]
        for index, name in enumerate(config["client_ids"]):
            if name not in self.victims:
                continue
            vector = arrays[name].numpy().copy()
            arrays[name] = Array(self._card(name, vector))
            if self.kind == "counts":
                counts = list(config["num_examples"])
                counts[index] *= MORE
                config["num_examples"] = counts

    def _card(self, name: str, vector: Vector) -> Vector:
        """Return the numbers of a signature: means, deviations, class frequencies, log n."""
        width = (len(vector) - self.classes - 1) // 2
        if self.kind == "outlier":
            vector[:width] = FAR
        elif self.kind == "frequencies":
            vector[-self.classes - 1 : -1] = RARE
            vector[-self.classes - 1] = 1.0
        elif self.kind == "counts":
            vector[-1] += math.log(MORE)
        elif self.kind == "collude":
            vector[: 2 * width] = self._features_of(self.victims[name], width)
        return vector

    def _features_of(self, client_id: str, width: int) -> Vector:
        if client_id not in self._shown:
            told = open_runtime(self.config).signature(client_id).vector().numpy()
            self._shown[client_id] = told[: 2 * width]
        return self._shown[client_id]

    def _lie_in_training(self, message: Message, reply: Message) -> None:
        """Keep up what the card said: the client would send its true signature, which the server does not know."""
        if "signature" in reply.content:
            del reply.content["signature"]
        if self.kind == "counts":
            metrics: Any = reply.content["metrics"]
            metrics["num_examples"] *= MORE

    def _lie_in_statistics(self, message: Message, reply: Message) -> None:
        arrays = reply.content.array_records["arrays"]
        parts = {name: array.numpy().copy() for name, array in arrays.items()}
        for name, value in statistics_lie(self.kind, parts).items():
            arrays[name] = Array(value.astype(np.float32))

    def _lie_in_scores(self, message: Message, reply: Message) -> None:
        asked = message.content.config_records if self.kind in ("scores", "collude") else {}
        for name, part in asked.items():
            if part.get("track", START_TRACK) != START_TRACK:
                metrics: Any = reply.content[name.replace("config", "metrics")]
                metrics["validation_loss"] = [max(0.0, WORST_LOSS - one) for one in metrics["validation_loss"]]


ANSWERS: Mapping[str, Callable[[LyingApp, Message, Message], None]] = {
    TrainRequest.TYPE: LyingApp._lie_in_training,
    StatisticsRequest.TYPE: LyingApp._lie_in_statistics,
    EvaluateBatch.TYPE: LyingApp._lie_in_scores,
}


def statistics_lie(kind: str, parts: Mapping[str, Vector]) -> dict[str, Vector]:
    """Return class statistics as a liar tells them: counts (C,), sums (C, d), scatter (q, d), remainder (d,)."""
    counts, sums = parts["counts"], parts["sums"]
    there = counts.nonzero()[0]
    if kind == "frequencies":
        one = np.zeros_like(sums)
        one[0] = sums.sum(axis=0)
        return {**parts, "counts": np.eye(len(counts), dtype=np.float32)[0] * counts.sum(), "sums": one}
    if kind == "huge":
        signs = np.where(np.random.default_rng(0).random(sums.shape) < 0.5, -1.0, 1.0)
        return {
            **parts,
            "sums": LARGEST * signs * (counts > 0)[:, None],
            "scatter": LARGEST * np.sign(parts["scatter"]),
        }
    if kind == "spread":
        return {**parts, **_along_a_line(parts)}
    if kind not in ("swapped", "counts"):
        return dict(parts)
    swapped = np.zeros_like(sums)
    swapped[there] = counts[there, None] * np.roll(sums[there] / counts[there, None], 1, axis=0)
    more = MORE if kind == "counts" else 1
    spread = {"scatter": more**0.5 * parts["scatter"], "remainder": more * parts["remainder"]}
    return {"counts": more * counts, "sums": np.clip(more * swapped, -LARGEST, LARGEST), **spread}


def _along_a_line(parts: Mapping[str, Vector]) -> dict[str, Vector]:
    """Return a scatter of the true size that lies on the line between the means of the two most frequent classes."""
    counts, sums, scatter = parts["counts"], parts["sums"], np.zeros_like(parts["scatter"])
    first, second = np.argsort(-counts, kind="stable")[:2]
    line = sums[first] / max(counts[first], 1) - sums[second] / max(counts[second], 1)
    size = np.sqrt(np.square(parts["scatter"]).sum() + parts["remainder"].sum())
    scatter[0] = size * line / max(float(np.linalg.norm(line)), 1e-12)
    return {"scatter": scatter, "remainder": np.zeros_like(parts["remainder"])}
