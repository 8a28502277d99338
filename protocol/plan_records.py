"""A start and its local plan as records of a message, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from models.adapter import Adapter, resized
from protocol.local_plan import LocalPlan, base_shapes, chosen, chosen_shapes, core_shapes
from protocol.records import (
    ProtocolError,
    arrays_of,
    decode_packed,
    decode_tensors,
    encode_packed,
    encode_tensors,
    require,
    require_list,
)
from protocol.wire import pack, unpack


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
