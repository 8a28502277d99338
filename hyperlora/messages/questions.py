"""The questions that the server may ask under secure aggregation (``privacy.mode = sums``), and their answers' layout.

Both sides derive the layout of an answer from the question and from what they share (backbone, classes, number of
clients), so a client cannot choose the shape of its answer. Bounds hold for a single client, which clips larger values.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.movements import MOVEMENTS, shapes_of_movement
from hyperlora.messages.noised_questions import NOISED_KINDS, units_of
from hyperlora.secure_sum.fixed_point import FixedPoint, Part
from hyperlora.secure_sum.noised_vector import NoisedVector
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics
from models.personalization.head_generator import SCALES
from models.sums.clusters import FURTHEST, Clusters
from models.sums.group_statistics import GroupStatistics

FEATURE, MOVED, LOSS, DEVIATIONS = 64.0, 16.0, 50.0, 16.0
"""Bounds of a pooled feature, of an entry of a movement, of a loss in nats, and, for each pair of classes, of how far a
client lies from its cluster in units of the variance within classes."""
MOST_SAMPLES = 4096.0
"""Samples that a client counts for at most."""
EXACT_KINDS = (
    *MOVEMENTS.values(),
    "head losses",
    "moments",
    "spread",
    "members",
    "classes",
    "deviations",
    "losses",
    "scores",
)
KINDS = tuple(dict.fromkeys(EXACT_KINDS + NOISED_KINDS))
TRIED_FACTORS = (0.0, *SCALES)
"""Factors on the head before round 1 that clients try."""
MOST_NOISE, MOST_GROUPS = 2.0**20, 256
"""Of a sum, and clusters at most."""
ANCHOR = "anchor "
"""What the names of the anchor's tensors begin with."""


@dataclass(frozen=True)
class Question:
    """One question of a sum.

    Attributes:
        kind: one of ``EXACT_KINDS``, or of ``NOISED_KINDS`` where there is noise.
        public: tensors that every client gets.
        noise: standard deviation of the noise of the sum, in units of the longest answer of a client; 0 is none.
    """

    kind: str
    public: Mapping[str, Tensor]
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ProtocolError(f"there is no sum of '{self.kind}'")
        if not 0.0 <= self.noise < MOST_NOISE or self.kind not in (NOISED_KINDS if self.noise else EXACT_KINDS):
            raise ProtocolError(f"a sum of '{self.kind}' cannot have noise of {self.noise}")

    def digest(self, clients: int, *beside: int | str) -> bytes:
        """Return a digest that all clients of a sum share only if they were asked the same question.

        Args:
            clients: that are asked.
            beside: what else an answer depends on, alike for all: round, backbone, settings of the run.
        """
        told = hashlib.sha256(json.dumps([self.kind, self.noise, clients, *beside]).encode())
        for name, one in sorted(self.public.items()):
            told.update(json.dumps([name, list(one.shape)]).encode())
            told.update(one.detach().cpu().float().contiguous().numpy().tobytes())
        return told.digest()

    @property
    def noised(self) -> bool:
        """Whether the answers have noise."""
        return self.noise > 0.0

    @property
    def anchor(self) -> Adapter:
        """The public adapter; raises ProtocolError."""
        try:
            return Adapter.from_tensors(_named(self.public, ANCHOR))
        except KeyError as error:
            raise ProtocolError(f"a sum of '{self.kind}' needs the anchor") from error

    @property
    def clusters(self) -> Clusters:
        """The public centroids; raises ProtocolError."""
        parts = [self.public.get(name) for name in ("center", "scale", "centroids", "members")]
        if any(one is None for one in parts) or not 1 <= len(parts[2]) <= MOST_GROUPS:  # type: ignore[arg-type]
            raise ProtocolError(f"a sum of '{self.kind}' needs from 1 to {MOST_GROUPS} clusters")
        return Clusters(*parts)  # type: ignore[arg-type]

    @property
    def mixture(self) -> tuple[float, float]:
        """Share of a client's own head, from 0 to 1, and the factor on the mixture; raises ProtocolError."""
        told = self.public.get("mixture")
        if told is None or told.shape != (2,) or not (0.0 <= told[0] <= 1.0 and 0.0 < told[1] < math.inf):
            raise ProtocolError(f"a sum of '{self.kind}' needs a share of the head and a scale")
        return float(told[0]), float(told[1])

    @property
    def scored_in(self) -> Tensor:
        """By cluster the group that its clients are scored in, (K,) integers; raises ProtocolError."""
        told = self.public.get("scored in")
        if (
            told is None
            or told.shape != (len(self.clusters.counts),)
            or bool((told < 0).any() | (told >= MOST_GROUPS).any())
        ):
            raise ProtocolError("a sum of scores needs a group for every cluster")
        return told.long()

    @property
    def groups(self) -> GroupStatistics:
        """The public class statistics of the clusters; raises ProtocolError."""
        names = ("counts", "sums", "scatter", "remainder")
        parts = [self.public.get(f"group {name}") for name in names]
        about = self.public.get("about groups")
        if about is None or any(one is None for one in parts):
            raise ProtocolError(f"a sum of '{self.kind}' needs class statistics of the clusters")
        each = zip(*parts, strict=True)
        return GroupStatistics(tuple(ClassStatistics(*one) for one in each), self.clusters.counts, float(about[0]))


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def public_anchor(anchor: Adapter) -> dict[str, Tensor]:
    """Return the tensors by which clients know the anchor."""
    return {f"{ANCHOR}{name}": one for name, one in anchor.tensors().items()}


def public_clusters(clusters: Clusters) -> dict[str, Tensor]:
    """Return the tensors by which clients know the clusters."""
    return {
        "center": clusters.center,
        "scale": clusters.scale,
        "centroids": clusters.centroids,
        "members": clusters.counts,
    }


def public_groups(groups: GroupStatistics) -> dict[str, Tensor]:
    """Return the tensors by which clients know what the classes of clusters look like."""
    parts = [one.tensors() for one in groups.groups]
    named = {f"group {name}": torch.stack([one[name] for one in parts]) for name in parts[0]}
    return {**named, "about groups": torch.tensor([groups.agreeing])}


@dataclass(frozen=True)
class Sizes:
    """What the shapes of answers follow from.

    Attributes:
        width: numbers of a pooled feature.
        fresh: the adapter before round 1.
        steps: how many numbers of local steps an evaluation scores after.
        clients: most clients of a sum.
        clip: L2 norm of a movement that gets noise.
        share: least share of the clients that are in a sum with noise.
    """

    width: int
    fresh: Adapter
    steps: int
    clients: int
    clip: float = 1.0
    share: float = 1.0


def layout(question: Question, sizes: Sizes) -> FixedPoint | NoisedVector:
    """Return how the answers to a question add up."""
    if question.noised:
        units = units_of(question.kind, sizes.fresh, sizes.steps, sizes.clip)
        return NoisedVector(units, sizes.clients, question.noise, sizes.share)
    return FixedPoint(_PARTS[question.kind](question, sizes), sizes.clients)


def _moments(question: Question, sizes: Sizes) -> dict[str, Part]:
    return {"count": Part((1,), 1.0), "sum": Part((sizes.width,), FEATURE), "squares": Part((sizes.width,), FEATURE**2)}


def _spread(question: Question, sizes: Sizes) -> dict[str, Part]:
    shape = (len(question.clusters.centroids), sizes.width)
    return {"spread": Part(shape, 4 * FURTHEST**2 * sizes.width**0.5)}


def _members(question: Question, sizes: Sizes) -> dict[str, Part]:
    groups = len(question.clusters.centroids)
    return {"counts": Part((groups, 1), 1.0), "sums": Part((groups, sizes.width), FURTHEST)}


def _movement(question: Question, sizes: Sizes) -> dict[str, Part]:
    shapes = shapes_of_movement(question.kind, sizes.fresh)
    return {"weight": Part((1,), 1.0), **{name: Part(shape, MOVED) for name, shape in shapes.items()}}


def _classes(question: Question, sizes: Sizes) -> dict[str, Part]:
    groups, classes, width = len(question.clusters.centroids), len(sizes.fresh.head), sizes.width
    return {
        "counts": Part((groups, classes), MOST_SAMPLES),
        "sums": Part((groups, classes, width), FEATURE * MOST_SAMPLES),
        "scatter": Part((groups, width, width), FEATURE * MOST_SAMPLES),
        "freedom": Part((groups,), MOST_SAMPLES),
        "clients": Part((groups,), 1.0),
        "paired": Part((groups,), 1.0),
        "agreeing": Part((groups,), 1.0),
    }


def _deviations(question: Question, sizes: Sizes) -> dict[str, Part]:
    return {"deviations": Part((4,), DEVIATIONS * len(sizes.fresh.head) ** 2)}


def _head_losses(question: Question, sizes: Sizes) -> dict[str, Part]:
    return {"count": Part((1,), 1.0), "losses": Part((len(TRIED_FACTORS),), LOSS)}


def _losses(question: Question, sizes: Sizes) -> dict[str, Part]:
    return {"count": Part((1,), 1.0), "anchor": Part((1,), LOSS), "own": Part((len(SCALES),), LOSS)}


def _scores(question: Question, sizes: Sizes) -> dict[str, Part]:
    groups = int(question.scored_in.max()) + 1
    figures = {
        name: Part((groups, sizes.steps), bound)
        for name, bound in (("accuracy", 1.0), ("loss", LOSS), ("validation", LOSS), ("calibration", 1.0))
    }
    return {"clients": Part((groups,), 1.0), "tests": Part((groups,), MOST_SAMPLES), **figures}


_PARTS: Mapping[str, Any] = {
    "moments": _moments,
    "spread": _spread,
    "members": _members,
    **dict.fromkeys(MOVEMENTS.values(), _movement),
    "classes": _classes,
    "deviations": _deviations,
    "losses": _losses,
    "head losses": _head_losses,
    "scores": _scores,
}
