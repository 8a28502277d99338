"""Settings of LoRA-FAIR."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from hyperlora.config.section import Section


class LoraFairSettings(Section):
    """How B is corrected."""

    prefix: ClassVar[str] = "lora-fair"
    form: Literal["closed", "iterative"] = Field("closed", description="of method = lora-fair: closed or iterative")
    penalty: NonNegativeFloat = Field(0.01, description="weight lambda of its penalty on the correction of B")


SECTIONS = (LoraFairSettings,)
