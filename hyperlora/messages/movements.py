"""Sums of movements: clients train one factor in a round, B and the head or A and the head, and tell how it moved.

They have noise where the run has (:mod:`hyperlora.messages.noised_questions`).
"""

from __future__ import annotations

from models.adapters.adapter import HEAD, Adapter

MOVEMENTS = {"B": "movement of B", "A": "movement of A"}
"""By the factor that clients train the kind of question."""


def moved_factor(kind: str) -> str:
    """Return ``B`` or ``A``, the factor that a kind of question has trained."""
    (side,) = (one for one, movement in MOVEMENTS.items() if movement == kind)
    return side


def shapes_of_movement(kind: str, fresh: Adapter) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a movement's parts, those of the head and of the trained factor of each kind of module."""
    side = moved_factor(kind)
    factors = {name: tuple(getattr(one, side).shape) for name, one in sorted(fresh.low_rank.items())}
    return {HEAD: tuple(fresh.head.shape), **factors}
