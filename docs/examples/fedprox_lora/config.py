"""The settings of FedProx-LoRA: ``-c fedprox.mu=0.1``."""

from typing import ClassVar

from pydantic import NonNegativeFloat

from hyperlora.config.section import Section, key


class FedProxSettings(Section):
    """How strongly clients are pulled towards their start."""

    prefix: ClassVar[str] = "fedprox"
    mu: NonNegativeFloat = key(0.01, "weight of the squared distance to the start")


SECTIONS = (FedProxSettings,)
