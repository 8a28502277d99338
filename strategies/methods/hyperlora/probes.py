"""How strongly newcomers are personalised: clients with an entry in the memory try on what they would get without it.

Leave-one-out over clients: the start that a client would get as a newcomer, at several strengths, is scored on its own
validation split, and newcomers get the strength with the lowest trimmed mean loss; 0 is the anchor. A quarter of the
clients is left out at either end, so that a few that lie about their loss cannot choose for everybody.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from strategies.methods.hyperlora.state import HyperLoraState

STRENGTHS = (0.0, 0.5, 1.0)
"""What is tried; the first is the anchor, which every loss is compared with."""
LEAST_CLIENTS = 4
TRIMMED = 0.25
"""Share of the clients that is left out at either end of a strength's losses."""
NewcomerStarts = Callable[[HyperLoraState, Sequence[ClientCard]], Sequence[Adapter]]


def probe_starts(
    state: HyperLoraState, cards: Sequence[ClientCard], most: int, server_round: int, make: NewcomerStarts
) -> dict[str, dict[str, Adapter]]:
    """Return client-id -> strength (as text) -> the start that it would get as a newcomer.

    Args:
        state: of the server.
        cards: clients that can be asked; those with an entry are.
        most: so many of them at most, drawn anew every round.
        server_round: the round.
        make: makes starts as if clients had no entry.
    """
    known = sorted((card for card in cards if card.client_id in state.memory), key=lambda card: card.client_id)
    if len(known) < LEAST_CLIENTS:
        return {}
    chosen = random.Random(derive_seed("rehearsal", server_round)).sample(known, min(most, len(known)))
    tried: dict[str, dict[str, Adapter]] = {card.client_id: {} for card in chosen}
    for strength in STRENGTHS:
        for card, start in zip(chosen, make(replace(state, newcomer_strength=strength), chosen), strict=True):
            tried[card.client_id][str(strength)] = start
    return tried


def apply_probe_losses(state: HyperLoraState, losses: Mapping[str, Mapping[str, float]]) -> HyperLoraState:
    """Return ``state`` with the best strength over clients that scored every strength.

    That is the one with the lowest trimmed mean of their validation losses, each seen from the client's own loss with
    the anchor. Fewer than ``LEAST_CLIENTS`` clients change nothing.
    """
    full = [[one.get(str(s), math.nan) for s in STRENGTHS] for one in losses.values()]
    full = [row for row in full if all(map(math.isfinite, row))]
    if len(full) < LEAST_CLIENTS:
        return state
    beyond_anchor = zip(*([loss - row[0] for loss in row] for row in full), strict=True)
    means = dict(zip(STRENGTHS, map(trimmed_mean, beyond_anchor), strict=True))
    return replace(state, newcomer_strength=min(means, key=means.__getitem__))


def trimmed_mean(values: Sequence[float]) -> float:
    """Return the mean without the ``TRIMMED`` share of the lowest values and of the highest."""
    left_out = int(TRIMMED * len(values))
    return fmean(sorted(values)[left_out : len(values) - left_out])
