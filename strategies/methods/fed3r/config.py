"""Settings of Fed3R."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat

from hyperlora.config.section import Section, key


class Fed3RSettings(Section):
    """The ridge regression and what follows it."""

    prefix: ClassVar[str] = "fed3r"
    ridge: PositiveFloat = key(0.01, "weight of the squared length of the weights")
    temperature: PositiveFloat = key(0.1, "what the outputs of weights of length 1 are divided by to be logits")
    adapts: Literal["all", "head"] = key("all", "what a client trains that adapts the classifier")


SECTIONS = (Fed3RSettings,)
