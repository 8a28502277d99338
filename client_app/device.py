"""What a client process computes on: the device, and how many threads are worth their while."""

from __future__ import annotations

import os

import torch

from hyperlora.config.schema import ConfigError
from models.backbones.backbone import Backbone

LEAST_SHARED_WORK = 50_000_000


def available_threads() -> int:
    """Return the cores this process has to itself: Ray's share in a simulation, else all that it may run on."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    return int(share) if share.isdigit() and int(share) > 0 else len(os.sched_getaffinity(0))


def worthwhile_threads(backbone: Backbone, batch_size: int) -> int:
    """Return the threads to train with: all that there are, or one where products are too small to be shared."""
    return available_threads() if backbone.matmul_work(batch_size) >= LEAST_SHARED_WORK else 1


def choose_device(wanted: str) -> torch.device:
    """Return the device to train on.

    Raises:
        ConfigError: ``cuda`` is wanted and this process is given no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device is 'cuda', but no GPU is visible to this client "
            "(in a simulation set --gpus-per-client above 0)"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)
