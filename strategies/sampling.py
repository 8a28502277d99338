"""Which clients train in a round: seeded, by client-id, the same in every run."""

from __future__ import annotations

import random
from collections.abc import Iterable


def sample_cohort(client_ids: Iterable[str], size: int, *, seed: int, server_round: int) -> list[str]:
    """Return ``size`` of the clients (all where there are fewer), sorted by client-id.

    The draw depends on the ids, ``seed`` and ``server_round`` alone, so a resumed run draws what an
    uninterrupted one would have drawn.
    """
    names = sorted(client_ids)
    chooser = random.Random(f"cohort:{seed}:{server_round}")
    return sorted(chooser.sample(names, min(size, len(names))))
