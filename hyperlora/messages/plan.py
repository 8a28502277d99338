"""What a method asks of a client beyond "train all of it": which factors are trained, what travels, what stays.

The default plan is plain LoRA: both factors and the head are sent, trained and sent back.

A start and its local plan as records of a message, and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from hyperlora.messages.codec import (
    ProtocolError,
    Shapes,
    arrays_of,
    decode_packed,
    decode_tensors,
    encode_packed,
    encode_tensors,
    pack,
    require,
    require_list,
    unpack,
)
from models.adapters.adapter import HEAD, Adapter, combine, resized
from models.lowrank.factors import Factors

TRAINED = ("all", "A", "B", "core")
PERSONAL = ("none", "fedsa", "feddpa", "potara")
PARTS = ("A", "B", HEAD)
MOST_BASE_RANK = 2**14


@dataclass(frozen=True)
class LocalPlan:
    """How a client works with the adapter it is sent.

    Attributes:
        trains: ``all`` factors, only ``A``, only ``B``, or an r x r ``core`` R between them, dW = B R A with B and A
            fixed. The head is always trained.
        down: which of ``A``, ``B`` and ``head`` the server sends; what is missing is that of the fresh adapter, which
            both sides make from the run's seed, or what the client kept.
        up: which of them the client sends back; what is missing is as it was sent. A core is always sent both ways.
        personal: what the client makes of it with what it kept itself (:mod:`client_app.personal`).
        base: a product of any rank that is added to the frozen weights; it has no head.
        core: kind -> R (blocks, r, r) where a core is trained.
    """

    trains: str = "all"
    down: Sequence[str] = PARTS
    up: Sequence[str] = PARTS
    personal: str = "none"
    base: Adapter | None = None
    core: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names."""
        if self.trains not in TRAINED or self.personal not in PERSONAL or not {*self.down, *self.up} <= {*PARTS}:
            asked = f"train '{self.trains}', keep '{self.personal}', exchange {[*self.down]} and {[*self.up]}"
            raise ProtocolError(f"a client cannot {asked}")

    @property
    def base_rank(self) -> int:
        """Rank of what is added to the frozen weights; 0 where nothing is."""
        return self.base.rank if self.base is not None and self.base.low_rank else 0


PLAIN_PLAN = LocalPlan()


def part_of(name: str) -> str:
    """Return which of ``A``, ``B`` and ``head`` a tensor of :meth:`models.adapters.adapter.Adapter.tensors` is."""
    return HEAD if name == HEAD else name.rsplit(".lora_", 1)[-1]


def chosen(adapter: Adapter, parts: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of ``adapter`` that belong to ``parts``."""
    return {name: tensor for name, tensor in adapter.tensors().items() if part_of(name) in parts}


def chosen_shapes(adapter: Adapter, parts: Sequence[str]) -> Shapes:
    """Return name -> shape of :func:`chosen`."""
    return {name: tuple(tensor.shape) for name, tensor in chosen(adapter, parts).items()}


def core_shapes(adapter: Adapter, trains: str) -> Shapes:
    """Return kind -> shape of the core between the adapter's factors; none where no core is trained."""
    if trains != "core":
        return {}
    return {kind: (*one.B.shape[:-2], one.rank, one.rank) for kind, one in adapter.low_rank.items()}


def base_shapes(adapter: Adapter, rank: int) -> Shapes:
    """Return name -> shape of a base of ``rank`` for the modules of ``adapter``.

    Raises:
        ProtocolError: the rank is negative or absurd.
    """
    if not 0 <= rank <= MOST_BASE_RANK:
        raise ProtocolError(f"a base of rank {rank} cannot be added to the frozen weights")
    shapes: dict[str, tuple[int, ...]] = {}
    for kind, one in adapter.low_rank.items() if rank else ():
        shapes[f"{kind}.lora_A"] = (*one.A.shape[:-2], rank, one.A.shape[-1])
        shapes[f"{kind}.lora_B"] = (*one.B.shape[:-2], one.B.shape[-2], rank)
    return shapes


def with_core(adapter: Adapter, core: Mapping[str, Tensor]) -> Adapter:
    """Return the adapter with dW = B R A, written as the factors B and R A; unchanged where there is no core."""
    if not core:
        return adapter
    turned = {kind: Factors(B=one.B, A=core[kind] @ one.A) for kind, one in adapter.low_rank.items()}
    return Adapter(turned, adapter.head)


def whole(adapter: Adapter, plan: LocalPlan) -> Adapter:
    """Return all that a plan adds to the backbone as one adapter: core and base included; its rank may be higher."""
    cored = with_core(adapter, plan.core)
    return cored if plan.base is None else combine([cored, plan.base], [1.0, 1.0])


def plan_entries(start: Adapter, plan: LocalPlan) -> dict[str, Any]:
    """Return the entries of a message's ConfigRecord that say how the start is to be read."""
    return {
        "rank": start.rank,
        "trains": plan.trains,
        "down": list(plan.down),
        "up": list(plan.up),
        "personal": plan.personal,
        "base_rank": plan.base_rank,
    }


def start_records(start: Adapter, plan: LocalPlan, wire: str = "float32") -> dict[str, ArrayRecord]:
    """Return the records of what travels of a start: the chosen parts as ``wire``, the core and the base as float32."""
    records = {"arrays": encode_packed(chosen(start, plan.down), wire)}
    if plan.core:
        records["core"] = encode_tensors(plan.core, np.float32)
    if plan.base is not None and plan.base_rank:
        records["base"] = encode_tensors(chosen(plan.base, ("A", "B")), np.float32)
    return records


def as_received(start: Adapter, plan: LocalPlan, wire: str) -> Adapter:
    """Return the start as its client reads it: what travels of it rounded by ``wire``."""
    if wire == "float32":
        return start
    rounded = unpack(pack(chosen(start, plan.down), wire), wire)
    return Adapter.from_tensors({**start.tensors(), **rounded})


def decode_start(
    content: RecordDict, config: ConfigRecord, fresh: Adapter, wire: str = "float32"
) -> tuple[Adapter, LocalPlan]:
    """Inverse of :func:`plan_entries` and :func:`start_records`; what was not sent is taken from ``fresh``.

    Raises:
        ProtocolError: the plan is none, the rank is above that of ``fresh``, or an array is not as the plan says.
    """
    rank, trains = require(config, "rank", int), require(config, "trains", str)
    if not 1 <= rank <= fresh.rank:
        raise ProtocolError(f"a start of rank {rank} does not fit this client's rank {fresh.rank}")
    template = resized(fresh, rank)
    down = require_list(config, "down", str)
    shapes = base_shapes(template, require(config, "base_rank", int))
    core = _optional(content, "core", core_shapes(template, trains))
    base = _optional(content, "base", shapes)
    plan = LocalPlan(
        trains,
        down,
        require_list(config, "up", str),
        require(config, "personal", str),
        Adapter.from_tensors({**base, "head": 0 * template.head}) if base else None,
        core,
    )
    return filled(content, template, plan.down, wire), plan


def filled(content: RecordDict, template: Adapter, parts: Sequence[str], wire: str = "float32") -> Adapter:
    """Return ``template`` with the ``parts`` that the message brings as ``wire``."""
    sent = decode_packed(arrays_of(content), chosen_shapes(template, parts), wire)
    return Adapter.from_tensors({**template.tensors(), **sent})


def _optional(content: RecordDict, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return decode_tensors(arrays_of(content, name), shapes) if shapes else {}
