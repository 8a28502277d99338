"""Figures over clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation and the mean of the worst tenth (at least one client) of ``values``."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    tenth = max(1, round(len(ordered) / 10))
    return {
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst_tenth": float(ordered[:tenth].mean()),
    }
