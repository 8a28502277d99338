"""HyperLoRA at the client: nothing of its own, or Potara's merging with the client's last adapter."""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from strategies.methods.base.client import ClientHalf
from strategies.methods.hyperlora.config import HyperLoraSettings
from strategies.methods.potara.client import PotaraClient


def build(config: RunConfig) -> ClientHalf:
    """Return Potara's client half where ``hyperlora.merge-own`` is on."""
    return PotaraClient() if config.of(HyperLoraSettings).merge_own else ClientHalf()
