"""The table of federated LoRA methods. A new one is a line here and its file: ``strategies/<name>.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodInfo:
    """What both sides must know of a method.

    Attributes:
        uses_prior: whether clients carry their class prior in the head's bias where ``prior.use`` is ``method``.
    """

    uses_prior: bool


METHODS: Mapping[str, MethodInfo] = {
    "hyperlora": MethodInfo(uses_prior=True),
    "fedit": MethodInfo(uses_prior=False),
    "flexlora": MethodInfo(uses_prior=False),
    "local": MethodInfo(uses_prior=False),
}
