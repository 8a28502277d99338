"""Settings of Potara."""

from __future__ import annotations

from typing import ClassVar, Literal

from hyperlora.config.section import Section, key


class PotaraSettings(Section):
    """How many local steps the federated adapter and the local one get."""

    prefix: ClassVar[str] = "potara"
    budget: Literal["full", "equal"] = key(
        "full", "local steps: full trains both adapters for train.local-steps, equal shares these out between them"
    )


SECTIONS = (PotaraSettings,)
