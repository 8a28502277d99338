"""What the server of a run of noised sums may ask, and what of each answer has length 1 (:mod:`hyperlora.secure_sum`).

Losses are cut off at ``LOSS`` nats. Scores are put into units in which no client's can be longer than 1; those of
movements are what most clients' are shorter than, and longer ones are shortened.
"""

from __future__ import annotations

from collections.abc import Mapping

from hyperlora.messages.movements import MOVEMENTS, shapes_of_movement
from hyperlora.secure_sum.noised_vector import Unit
from models.adapters.adapter import Adapter

LOSS = 5.0
NOISED_KINDS = (*MOVEMENTS.values(), "noised scores")
SCORE_SHARES = {"accuracy": 0.5, "loss": 0.25, "validation": 0.125, "calibration": 0.125}
"""Of the squared length of scores."""


def units_of(kind: str, fresh: Adapter, steps: int, clip: float) -> dict[str, Unit]:
    """Return the parts of an answer.

    Args:
        kind: one of ``NOISED_KINDS``.
        fresh: the adapter before round 1.
        steps: how many numbers of local steps an evaluation scores after.
        clip: L2 norm of a movement that has length 1.
    """
    if kind in MOVEMENTS.values():
        return {name: Unit(shape, clip) for name, shape in shapes_of_movement(kind, fresh).items()}
    return _scores(steps)


def _scores(steps: int) -> dict[str, Unit]:
    most: Mapping[str, float] = {"accuracy": 1.0, "loss": LOSS, "validation": LOSS, "calibration": 1.0}
    return {name: Unit((steps,), most[name] * (steps / share) ** 0.5) for name, share in SCORE_SHARES.items()}
