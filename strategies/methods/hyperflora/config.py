"""Settings of HyperFLoRA."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from hyperlora.config.section import Section


class HyperFLoraSettings(Section):
    """The hypernetwork."""

    prefix: ClassVar[str] = "hyperflora"
    learning_rate: PositiveFloat = Field(0.01, description="of the hypernetwork of method = hyperflora")
    hidden: PositiveInt = Field(64, description="width of its hidden layers")
    inputs: PositiveInt = Field(16, description="numbers that a signature is reduced to")


SECTIONS = (HyperFLoraSettings,)
