"""Settings of LoRA-FAIR."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat

from hyperlora.config.section import Section, key


class LoraFairSettings(Section):
    """How B is corrected."""

    prefix: ClassVar[str] = "lora-fair"
    form: Literal["closed", "iterative"] = key("closed", "of method = lora-fair: closed or iterative")
    penalty: NonNegativeFloat = key(0.01, "weight lambda of its penalty on the correction of B")


SECTIONS = (LoraFairSettings,)
