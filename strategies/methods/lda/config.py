"""Settings of the linear discriminant."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from hyperlora.config.section import Section, key


class LdaSettings(Section):
    """How a client's class means are shrunk."""

    prefix: ClassVar[str] = "lda"
    shrinkage: PositiveFloat = key(30.0, "samples of a class at which a client's mean weighs as much as the global one")
    ridge: NonNegativeFloat = key(0.3, "share of the mean variance within classes that is added to every direction")
    clusters: NonNegativeInt = key(0, "clusters of clients between a client and all of them; 0 is none")


SECTIONS = (LdaSettings,)
