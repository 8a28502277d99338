"""Settings of FedPer and its relatives."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hyperlora.config.section import Section, key

Share = Annotated[float, Field(gt=0, lt=1)]


class FedPerSettings(Section):
    """Which of the family is run."""

    prefix: ClassVar[str] = "fedper"
    form: Literal["fedper", "fedrep", "fedbabu"] = key(
        "fedper", "train head and LoRA together (fedper), the head and then LoRA (fedrep), or LoRA alone (fedbabu)"
    )
    head_share: Share = key(0.5, "share of a client's local steps that train the head where fedper.form is fedrep")
    newcomer_head: Literal["average", "fresh"] = key(
        "average", "head of a client without one of its own: the average of the others', or the fresh one (fedbabu)"
    )


SECTIONS = (FedPerSettings,)
