"""HyperLoRA on Flower: ``from strategies import HyperLoRA`` gives a Flower Strategy for any ServerApp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.engine.assembly import HyperLoRA

__all__ = ["HyperLoRA"]


def __getattr__(name: str) -> Any:
    """Import the strategy when it is asked for: torch takes seconds."""
    if name != "HyperLoRA":
        raise AttributeError(f"module 'strategies' has no attribute '{name}'")
    from strategies.engine import assembly

    return assembly.HyperLoRA
