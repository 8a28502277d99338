"""Settings of Fed3R."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat

from hyperlora.config.section import Section, key


class Fed3RSettings(Section):
    """The ridge regression and what follows it."""

    prefix: ClassVar[str] = "fed3r"
    ridge: PositiveFloat = key(0.01, "weight of the squared length of the weights")
    temperature: PositiveFloat = key(0.1, "softmax temperature of the classifier, whose class weights have norm 1")
    adapts: Literal["all", "head"] = key("all", "what a client trains when it fine-tunes: all parameters, or the head")


SECTIONS = (Fed3RSettings,)
