"""Fed3R at the client: nothing is trained in a round."""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from strategies.methods.lda.client import DescribedClient


def build(config: RunConfig) -> DescribedClient:
    """Return the client half; it has no settings."""
    return DescribedClient()
