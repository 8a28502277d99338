"""Settings of pFedHN-LoRA."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat

from hyperlora.config.section import PositiveInt, Section, key


class PFedHNSettings(Section):
    """The hypernetwork."""

    prefix: ClassVar[str] = "pfedhn-lora"
    learning_rate: PositiveFloat = key(0.01, "learning rate of the hypernetwork")
    hidden: PositiveInt = key(64, "width of the hypernetwork's hidden layers")
    inputs: PositiveInt = key(16, "dimension to which a signature is projected before it enters the hypernetwork")


SECTIONS = (PFedHNSettings,)
