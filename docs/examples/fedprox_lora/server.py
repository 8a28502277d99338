"""The server half of FedProx-LoRA: that of FedIT, since only local training differs."""

from hyperlora.config.schema import RunConfig
from strategies.methods.fedit import FedIT


def build(config: RunConfig) -> FedIT:
    """Return the method."""
    return FedIT()
