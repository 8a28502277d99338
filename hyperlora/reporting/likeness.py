"""How far a newcomer's data lie from those of a run's clients, by what the frozen backbone says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperlora.messages.signature import ClientCard
from models.personalization.signature import Signature

FEWEST, FAR = 3, 1.2
"""Digits of other seeds are at most 1.1 times the usual distance away; flat images 1.5 times, noise 1.3 times."""


@dataclass(frozen=True)
class Likeness:
    """The client of a run whose data are nearest to a newcomer's.

    Attributes:
        nearest: its client-id.
        distance: root mean square difference of feature means and standard deviations, each at the scale of its
            spread over the clients.
        usual: the largest distance of any client to the client nearest to it.
    """

    nearest: str
    distance: float
    usual: float

    @property
    def unlike(self) -> bool:
        """Whether the data are far from those of every client, as clients are from each other."""
        return self.distance > FAR * self.usual


def likeness(signature: Signature, cards: Mapping[str, ClientCard]) -> Likeness | None:
    """Compare a signature with those of the clients; None where there are too few to tell what is usual.

    Clusters of a run of sums are no clients: they have means and no deviations, and are compared with nobody.
    """
    if len(cards) < FEWEST or not any(bool(card.signature.feature_std.any()) for card in cards.values()):
        return None
    names = sorted(cards)
    known = torch.stack([_features(cards[name].signature) for name in names])
    spread = known.std(dim=0).clamp_min(1e-6)
    own = _rms(_features(signature)[None] / spread, known / spread)[0]
    among = _rms(known / spread, known / spread).fill_diagonal_(torch.inf)
    nearest = int(own.argmin())
    return Likeness(names[nearest], float(own[nearest]), float(among.min(dim=1).values.max()))


def _features(signature: Signature) -> Tensor:
    return torch.cat([signature.feature_mean, signature.feature_std])


def _rms(left: Tensor, right: Tensor) -> Tensor:
    """Return the root mean square difference of every row of (n, k) to every one of (m, k): (n, m)."""
    distances: Tensor = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / math.sqrt(left.shape[1])
