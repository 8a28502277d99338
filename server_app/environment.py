"""What a run was made with: versions, seed, fingerprint and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = (
    "hyperlora",
    "flwr",
    "ray",
    "torch",
    "torchvision",
    "timm",
    "peft",
    "transformers",
    "datasets",
    "numpy",
)


def describe_environment(seed: int, fingerprint: str) -> dict[str, Any]:
    """Return versions, seed, backbone fingerprint and machine as JSON values."""
    return {
        "seed": seed,
        "backbone_fingerprint": fingerprint,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
