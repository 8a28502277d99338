"""Settings of Fed-SB."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeInt

from hyperlora.config.section import ConfigError, Section, key

if TYPE_CHECKING:
    from hyperlora.config.schema import RunConfig


class FedSBSettings(Section):
    """The core and the factors that it stands between."""

    prefix: ClassVar[str] = "fed-sb"
    rank: NonNegativeInt = key(0, "r of the r x r cores; 0 chooses r such that they have as many parameters as LoRA")
    basis: Literal["gradient", "sign"] = key(
        "gradient", "singular vectors of the average gradient, or of its sign as the authors take"
    )

    def check(self, config: RunConfig) -> None:
        """Refuse noise on adapters that a gradient without noise would go round."""
        if config.privacy.adapter_noise:
            raise ConfigError(
                "privacy.adapter-noise does not work with method = fed-sb: "
                "the gradient that its clients send in round 1 carries no noise"
            )


SECTIONS = (FedSBSettings,)
