"""Questions of secure sums with differential privacy, and the units in which an answer has a norm of at most 1.

See :mod:`hyperlora.secure_sum`. Losses are cut off at ``LOSS`` nats. Scores are scaled such that no client's answer can
have a norm above 1. The unit of a movement (a client's update) is the clipping norm; longer ones are clipped to it.
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
