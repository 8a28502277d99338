"""Settings of HiLoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, NonNegativeFloat

from hyperlora.config.section import ConfigError, Fraction, Section, key

if TYPE_CHECKING:
    from hyperlora.config.schema import RunConfig

Clusters = Annotated[int, Field(ge=2)]


class HiLoraSettings(Section):
    """The three tiers and the clusters."""

    prefix: ClassVar[str] = "hilora"
    root_share: Fraction = key(0.3, "fraction of the rounds that train the root adapter of all clients, at least one")
    cluster_share: Fraction = key(
        0.4, "fraction of the rounds that train the cluster adapters; the rest trains each client's own adapter"
    )
    max_clusters: Clusters = key(8, "maximum number of clusters; the eigengap chooses how many")
    smoothing: Fraction = key(0.9, "decay of the moving average of a client's lora_B, by which clients are clustered")
    penalty: NonNegativeFloat = key(0.1, "weight of the penalty that keeps a tier's lora_B orthogonal to lower tiers'")

    def check(self, config: RunConfig) -> None:
        """Refuse shares that leave no round to the clients' own adapters."""
        if self.root_share + self.cluster_share >= 1:
            raise ConfigError(
                f"hilora.root-share {self.root_share} and hilora.cluster-share {self.cluster_share} "
                "must be below 1 together: the rest of the rounds trains the clients' own adapters"
            )

    def rounds(self, total: int) -> tuple[int, int]:
        """Return the rounds of the root and of the cluster tier out of ``total``."""
        return max(1, round(self.root_share * total)), max(1, round(self.cluster_share * total))


SECTIONS = (HiLoraSettings,)
