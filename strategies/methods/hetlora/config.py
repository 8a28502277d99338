"""Settings of HetLoRA."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat

from hyperlora.config.section import Section, key


class HetLoraSettings(Section):
    """How clients prune their ranks; the ranks themselves are those of ``lora.ranks``."""

    prefix: ClassVar[str] = "hetlora"
    kept: Annotated[float, Field(gt=0, le=1)] = key(
        0.99, "share gamma of its rank, rounded down, that a client keeps when it prunes; 1 never prunes"
    )
    penalty: NonNegativeFloat = key(0.1, "weight lambda of the penalty on the columns that would be pruned")


SECTIONS = (HetLoraSettings,)
