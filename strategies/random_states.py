"""The states of the process's global random generators, as a checkpoint keeps them.

Nothing of the product draws from them (randomness comes from named seeds, :func:`protocol.build.derive_seed`); a method
or library that does still goes on where it stopped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as a tree of tensors and numbers."""
    kind, words, *rest = np.random.get_state()
    numbers = torch.from_numpy(np.asarray(words).astype(np.int64))
    return {"python": random.getstate(), "numpy": [str(kind), numbers, *rest], "torch": torch.get_rng_state()}


def restore(states: Mapping[str, Any]) -> None:
    """Inverse of :func:`capture`; what is not in ``states`` stays as it is."""
    if "python" in states:
        random.setstate(states["python"])
    if "numpy" in states:
        kind, numbers, *rest = states["numpy"]
        np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    if "torch" in states:
        torch.set_rng_state(states["torch"])
