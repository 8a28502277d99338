"""Settings of Ditto."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeFloat

from hyperlora.config.section import Section, key


class DittoSettings(Section):
    """The personal adapter."""

    prefix: ClassVar[str] = "ditto"
    pull: NonNegativeFloat = key(0.1, "weight of the squared distance of the personal adapter to the global one")


SECTIONS = (DittoSettings,)
