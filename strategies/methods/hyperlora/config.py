"""Settings of HyperLoRA: served heads, the synthesizer, the generator, and the corrector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from hyperlora.config.section import ConfigError, PositiveInt, Section, key

if TYPE_CHECKING:
    from hyperlora.config.schema import RunConfig

Deviations = Literal["rounds", "serving", "off"]
GeneratorKind = Literal["off", "atoms", "mlp"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]


class HyperLoraSettings(Section):
    """The server side of method = hyperlora: what clients are served, and the synthesizer."""

    prefix: ClassVar[str] = "hyperlora"

    deviations: Deviations = key(
        "off",
        "where starts hold attended and generated deviations: in rounds and at use (rounds), at use alone, or off",
    )
    averaging: PositiveShare = key(
        0.3, "weight of a round's anchor in the running average that clients are served; 1 serves the last anchor"
    )
    statistics: bool = key(True, "clients describe their classes before an evaluation, for a head in closed form")
    statistics_rank: PositiveInt = key(16, "rank of the scatter within classes that clients send")
    remember_statistics: bool = key(
        True, "what a client told of its classes counts until it tells anew, as while it is away"
    )
    head_share: Share = key(0.5, "share of that head in what clients are served")
    head_scale: PositiveFloat = key(
        0.5,
        "factor on the served head beside the class prior; clients may choose a smaller one on the generated part",
    )
    temperature: PositiveFloat = key(0.3, "temperature of the attention over the memory")
    self_logit: float = key(0.0, "added to the attention logit of a client's own deviation")
    strength: NonNegativeFloat = key(1.0, "factor on the attended deviations; 0 is no synthesizer")
    server_step: PositiveFloat = key(1.0, "step of the anchor along the averaged movements")
    memory_limit: NonNegativeInt = key(0, "clients whose deviations stay in RAM, the others lie on disk; 0 is all")
    probe_clients: NonNegativeInt = key(
        16, "clients that score before an evaluation whether these heads and deviations beat the anchor; 0 is none"
    )

    def check(self, config: RunConfig) -> None:
        """Refuse what a run of sums has no single clients for."""
        if config.privacy.mode == "sums" and (self.deviations != "off" or not self.statistics):
            raise ConfigError("privacy.mode = sums needs hyperlora.deviations = off and hyperlora.statistics")


class GeneratorSettings(Section):
    """The hypernetwork of method = hyperlora."""

    prefix: ClassVar[str] = "generator"

    kind: GeneratorKind = key("atoms", "variant of the generator, or off")
    rank: PositiveInt = key(16, "learned atoms (or rank) per module")
    hidden: PositiveInt = key(64, "width of its hidden layers")
    inputs: PositiveInt = key(16, "numbers that a signature is reduced to")
    steps: NonNegativeInt = key(20, "optimiser steps of its distillation per round")
    learning_rate: PositiveFloat = key(0.01, "of its distillation")
    virtual_samples: NonNegativeInt = key(48, "mixed and noised signatures per distillation")
    share: Share = key(0.12, "share of the generator in what starts take beyond the anchor, the rest is attended to")
    noise: NonNegativeFloat = key(0.2, "standard deviation of their noise, in standardised units")


class CorrectorSettings(Section):
    """The corrector of method = hyperlora."""

    prefix: ClassVar[str] = "corrector"

    rank: NonNegativeInt = key(0, "most rank that is carried of what truncation cut off; 0 is no corrector")
    share: Share = key(0.5, "share of it that enters the anchor again in the next round; 1 loses nothing")


SECTIONS = (HyperLoraSettings, GeneratorSettings, CorrectorSettings)
