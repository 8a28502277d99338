"""Settings of pFedHN-LoRA."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat

from hyperlora.config.section import PositiveInt, Section, key


class PFedHNSettings(Section):
    """The hypernetwork."""

    prefix: ClassVar[str] = "pfedhn-lora"
    learning_rate: PositiveFloat = key(0.01, "of the hypernetwork")
    hidden: PositiveInt = key(64, "width of its hidden layers")
    inputs: PositiveInt = key(16, "numbers that a signature is reduced to")


SECTIONS = (PFedHNSettings,)
