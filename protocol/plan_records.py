"""A start and its local plan as records of a message, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from models.adapter import Adapter, resized
from protocol.local_plan import LocalPlan, base_shapes, chosen, chosen_shapes, core_shapes
from protocol.records import ProtocolError, arrays_of, decode_tensors, encode_tensors, require, require_list


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


def start_records(start: Adapter, plan: LocalPlan) -> dict[str, ArrayRecord]:
    """Return the records of what travels of a start: the chosen parts, the core and the base."""
    records = {"arrays": encode_tensors(chosen(start, plan.down), np.float32)}
    if plan.core:
        records["core"] = encode_tensors(plan.core, np.float32)
    if plan.base is not None and plan.base_rank:
        records["base"] = encode_tensors(chosen(plan.base, ("A", "B")), np.float32)
    return records


def decode_start(content: RecordDict, config: ConfigRecord, fresh: Adapter) -> tuple[Adapter, LocalPlan]:
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
    return filled(content, template, plan.down), plan


def filled(content: RecordDict, template: Adapter, parts: Any) -> Adapter:
    """Return ``template`` with the ``parts`` that the message brings."""
    sent = decode_tensors(arrays_of(content), chosen_shapes(template, parts))
    return Adapter.from_tensors({**template.tensors(), **sent})


def _optional(content: RecordDict, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return decode_tensors(arrays_of(content, name), shapes) if shapes else {}
