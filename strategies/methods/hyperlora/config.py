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
        "when clients get personal deviations from the anchor: in training rounds and in use (rounds), only in"
        " use (serving), or never (off)",
    )
    averaging: PositiveShare = key(
        0.3, "weight of the newest anchor in the running average that clients get; 1 gives them the newest one"
    )
    statistics: bool = key(
        True, "clients send class statistics before an evaluation, from which their heads are computed in closed form"
    )
    statistics_rank: PositiveInt = key(16, "rank of the within-class scatter that clients send")
    remember_statistics: bool = key(
        True, "keep a client's last class statistics until it sends new ones, for example while it is offline"
    )
    head_share: Share = key(0.5, "weight of the closed-form head in a client's head; the rest is the anchor's")
    head_scale: PositiveFloat = key(
        0.5,
        "factor on a client's head before its class prior is added; probing clients may choose a smaller one for the"
        " closed-form part",
    )
    temperature: PositiveFloat = key(0.3, "temperature of the attention over remembered deviations")
    self_logit: float = key(0.0, "added to the attention logit of a client's own deviation")
    strength: NonNegativeFloat = key(1.0, "factor on the attended deviations; 0 turns the attention off")
    server_step: PositiveFloat = key(1.0, "server learning rate: step of the anchor along the averaged updates")
    memory_limit: NonNegativeInt = key(
        0, "number of clients whose deviations are kept in RAM, the rest is kept on disk; 0 keeps all in RAM"
    )
    probe_clients: NonNegativeInt = key(
        16,
        "clients that check on their validation data before an evaluation whether closed-form heads and deviations beat"
        " the anchor; 0 skips the check",
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
    hidden: PositiveInt = key(64, "width of the generator's hidden layers")
    inputs: PositiveInt = key(16, "dimension to which a signature is projected before it enters the generator")
    steps: NonNegativeInt = key(20, "optimiser steps per round with which the generator is distilled")
    learning_rate: PositiveFloat = key(0.01, "learning rate of the distillation")
    virtual_samples: NonNegativeInt = key(48, "synthetic signatures per distillation: mixtures of real ones plus noise")
    share: Share = key(0.12, "weight of the generator in a client's deviation; the rest comes from attention")
    noise: NonNegativeFloat = key(0.2, "standard deviation of the noise on synthetic signatures, in standardised units")


class CorrectorSettings(Section):
    """The corrector of method = hyperlora."""

    prefix: ClassVar[str] = "corrector"

    rank: NonNegativeInt = key(0, "maximum rank of the truncation residual kept for error feedback; 0 turns it off")
    share: Share = key(0.5, "fraction of the residual added back to the anchor each round; 1 loses nothing")


SECTIONS = (HyperLoraSettings, GeneratorSettings, CorrectorSettings)
