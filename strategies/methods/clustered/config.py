"""Settings of clustered federation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeInt

from hyperlora.config.section import PositiveInt, Section, key


class ClusteredSettings(Section):
    """How clients are grouped."""

    prefix: ClassVar[str] = "clustered"
    clusters: PositiveInt = key(4, "clusters of clients, for method = clustered; no more than there are that train")
    warm_rounds: NonNegativeInt = key(5, "first rounds, in which all clients share one adapter")


SECTIONS = (ClusteredSettings,)
