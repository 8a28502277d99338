"""Settings of FedDPA."""

from __future__ import annotations

from typing import ClassVar, Literal

from hyperlora.config.section import Section, key


class FedDPASettings(Section):
    """How many local steps each of its two adapters gets."""

    prefix: ClassVar[str] = "feddpa"
    budget: Literal["full", "equal"] = key(
        "full", "local steps: full trains both adapters for train.local-steps, equal shares these out between them"
    )


SECTIONS = (FedDPASettings,)
