"""Choose how clients are served: some of them score the candidates on their validation split, as if they were new.

The choice holds for all clients: heads from class statistics or the anchor's head, the scale of these heads, and the
strength of the deviation for a client without an entry in the memory. The candidate with the lowest trimmed mean loss
wins. A quarter of the clients is trimmed at either end, so that a few false losses cannot decide for everybody, and
clients with implausible class statistics are not asked. If the trimmed mean favours the anchor, the median decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.personalization.head_generator import at_scale
from strategies.methods.hyperlora.state import HyperLoraState


@dataclass(frozen=True)
class Candidate:
    """One way to serve: ``strength`` of a newcomer's deviation, ``share`` and ``scale`` of the served head."""

    strength: float
    share: float
    scale: float

    @property
    def name(self) -> str:
        """Its name in requests."""
        return f"{self.strength:g}/{self.share:g}/{self.scale:g}"

    def chosen(self, state: HyperLoraState) -> HyperLoraState:
        """Return ``state`` with clients served like that."""
        return state.with_service(strength=self.strength, share=self.share, scale=self.scale)


ANCHOR = Candidate(0.0, 0.0, 1.0)
"""What every loss is compared with."""
STRENGTHS = (0.0, 0.5, 1.0)
FACTORS = (1.0, 0.25)
"""On a generated head beside the anchor's: as set, and where discriminants of many classes are far too sure. What is
smaller still may have the lower loss, and is less often right."""
LEAST_CLIENTS = 4
TRIMMED = 0.25
"""Share of the clients that is left out at either end of a candidate's losses."""
ServedToNewcomers = Callable[[HyperLoraState, Sequence[ClientCard]], Sequence[Adapter]]


def candidates(head: tuple[float, float] | None, *, deviations: bool) -> list[Candidate]:
    """Return what is tried, ``ANCHOR`` first: heads from class statistics, at every scale and strength of deviations.

    Args:
        head: its share and scale at full weight; None where clients did not describe their classes.
        deviations: whether clients are served deviations at all.
    """
    strengths = STRENGTHS if deviations else STRENGTHS[:1]
    served = [(0.0, 1.0)] if head is None else [at_scale(*head, factor) for factor in FACTORS]
    return list(dict.fromkeys([ANCHOR, *(Candidate(strength, *one) for strength in strengths for one in served)]))


def probe_starts(
    state: HyperLoraState,
    cards: Sequence[ClientCard],
    tried: Sequence[Candidate],
    most: int,
    server_round: int,
    make: ServedToNewcomers,
) -> dict[str, dict[str, Adapter]]:
    """Return client-id -> candidate's name -> what the client would be served as a newcomer.

    Args:
        state: of the server.
        cards: clients that can be asked; those that have trained are.
        tried: the candidates.
        most: so many clients at most, drawn anew every round.
        server_round: the round.
        make: makes what newcomers are served.
    """
    disbelieved = state.head_generator.disbelieved if state.head_generator else ()
    asked = (card for card in cards if card.client_id in state.num_examples and card.client_id not in disbelieved)
    known = sorted(asked, key=lambda card: card.client_id)
    if len(known) < LEAST_CLIENTS or len(tried) < 2:
        return {}
    chosen = random.Random(derive_seed("rehearsal", server_round)).sample(known, min(most, len(known)))
    starts: dict[str, dict[str, Adapter]] = {card.client_id: {} for card in chosen}
    for candidate in tried:
        for card, start in zip(chosen, make(candidate.chosen(state), chosen), strict=True):
            starts[card.client_id][candidate.name] = start
    return starts


def apply_probe_losses(
    state: HyperLoraState, tried: Sequence[Candidate], losses: Mapping[str, Mapping[str, float]]
) -> HyperLoraState:
    """Return ``state`` with the best candidate over clients that scored every one of ``tried``.

    That is the one with the lowest trimmed mean of their validation losses, each seen from the client's own loss with
    the anchor. Fewer than ``LEAST_CLIENTS`` clients change nothing.
    """
    full = [[one.get(candidate.name, math.nan) for candidate in tried] for one in losses.values()]
    full = [row for row in full if all(map(math.isfinite, row)) and any(row)]  # 0 throughout: no validation samples
    if len(full) < LEAST_CLIENTS:
        return state
    columns = list(zip(*([loss - row[0] for loss in row] for row in full), strict=True))
    return best_of(tried, columns).chosen(state)


def best_of(tried: Sequence[Candidate], losses: Sequence[Sequence[float]]) -> Candidate:
    """Return the best of the candidates, ``ANCHOR`` first, by what clients lose with each beyond the anchor.

    Any number of liars below half cannot have the anchor chosen where the others are for something else.
    """
    by_mean = _lowest(tried, losses, trimmed_mean)
    return _lowest(tried, losses, median) if by_mean == ANCHOR else by_mean


def _lowest(
    tried: Sequence[Candidate], losses: Sequence[Sequence[float]], middle: Callable[[Sequence[float]], float]
) -> Candidate:
    return min(zip(tried, map(middle, losses), strict=True), key=lambda pair: pair[1])[0]


def trimmed_mean(values: Sequence[float]) -> float:
    """Return the mean without the ``TRIMMED`` share of the lowest values and of the highest."""
    left_out = int(TRIMMED * len(values))
    return fmean(sorted(values)[left_out : len(values) - left_out])
