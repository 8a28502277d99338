"""The table of federated LoRA methods. A new one is a line here and its file: ``strategies/<name>.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodInfo:
    """What both sides must know of a method.

    Attributes:
        uses_prior: whether clients carry their class prior in the head's bias where ``prior.use`` is ``method``.
        any_rank: whether its clients may have different ranks (``lora.ranks``).
    """

    uses_prior: bool = False
    any_rank: bool = False


METHODS: Mapping[str, MethodInfo] = {
    "hyperlora": MethodInfo(uses_prior=True, any_rank=True),
    "fedit": MethodInfo(),
    "flexlora": MethodInfo(any_rank=True),
    "local": MethodInfo(any_rank=True),
    "ffa-lora": MethodInfo(),
    "rolora": MethodInfo(),
    "fedsa-lora": MethodInfo(),
    "flora": MethodInfo(any_rank=True),
    "fedex-lora": MethodInfo(),
    "lora-fair": MethodInfo(),
    "fed-sb": MethodInfo(),
    "hetlora": MethodInfo(any_rank=True),
    "feddpa": MethodInfo(),
    "potara": MethodInfo(),
    "hyperflora": MethodInfo(),
}
