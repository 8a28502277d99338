"""The local plan, by which a method says how clients train, and the start: the adapter that is sent with that plan.

The default plan is plain LoRA: both factors and the head are sent, trained and sent back. Only this module applies a
client's rank, its byte budget and the rounding of the number format to a start: :meth:`Start.fitted` returns on the
server exactly what the client will decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from hyperlora.messages.codec import (
    ProtocolError,
    arrays_of,
    config_record,
    decode_packed,
    decode_tensors,
    encode_packed,
    encode_tensors,
    require,
    require_list,
    require_wire,
)
from hyperlora.messages.number_formats import Shapes, pack, unpack
from hyperlora.messages.ragged import flattened, flattened_shapes, ranks_as_list, ranks_from_list, stacked
from models.adapters.adapter import HEAD, Adapter, combine, resized
from models.adapters.rank_budget import NO_RANKS, NO_WORTH, Ranks, Worth, within_budget
from models.lowrank.factors import Factors

TRAINED = ("all", "A", "B", "core", "head", "body")
PARTS = ("A", "B", HEAD)
MAX_RANK = 2**14


@dataclass(frozen=True)
class LocalPlan:
    """How a client works with the adapter it is sent.

    Attributes:
        trains: ``all`` factors, only ``A``, only ``B``, or a square ``core`` R between the fixed B and A of ``frame``,
            dW = B R A, each with the head; the ``head`` alone, or the ``body``, which is all factors without the head.
        down: which of ``A``, ``B`` and ``head`` the server sends; what is missing is that of the fresh adapter, which
            both sides make from the run's seed, or what the client kept.
        up: which of them the client sends back; what is missing is as it was sent. A core is always sent both ways.
        personal: whether the client half of the method combines the adapter with one that the client kept.
        base: a product of any rank that is added to the frozen weights; it has no head.
        frame: where a core is trained, the fixed B and A that stand in place of the adapter's own, of any one rank; it
            has no head.
        core: kind -> R (blocks, r, r) where a core is trained, r the rank of the frame.
        gradient_rank: rank of the factors in which the client half of the method tells the gradient of the frozen
            weights (:mod:`models.adapters.weight_gradient`); 0 where it tells none.

    Raises:
        ProtocolError: a name is unknown or a rank out of range.
    """

    trains: str = "all"
    down: Sequence[str] = PARTS
    up: Sequence[str] = PARTS
    personal: bool = False
    base: Adapter | None = None
    frame: Adapter | None = None
    core: Mapping[str, Tensor] = field(default_factory=dict)
    gradient_rank: int = 0

    def __post_init__(self) -> None:
        if self.trains not in TRAINED or not {*self.down, *self.up} <= {*PARTS}:
            raise ProtocolError(f"a client cannot train '{self.trains}', exchange {[*self.down]} and {[*self.up]}")
        if not 0 <= self.gradient_rank <= MAX_RANK:
            raise ProtocolError(f"a gradient of rank {self.gradient_rank} cannot be sent")
        if (self.trains == "core") != (self.frame is not None):
            raise ProtocolError("a core is trained between the factors of a frame, and there is one without the other")

    @property
    def base_rank(self) -> int:
        """Rank of the product that is added to the frozen weights; 0 where there is none."""
        return self.base.rank if self.base is not None and self.base.low_rank else 0

    @property
    def frame_rank(self) -> int:
        """Rank of the fixed factors that a core stands between; 0 where none is trained."""
        return 0 if self.frame is None else self.frame.rank


PLAIN_PLAN = LocalPlan()


@dataclass(frozen=True)
class Start:
    """An adapter for one client, the plan for working with it, and the number format that it travels in.

    Attributes:
        adapter: the adapter.
        plan: how the client works with it.
        wire: ``float32``, ``float16``, ``int8`` or ``int4`` (:mod:`hyperlora.messages.number_formats`).
        ranks: rank of every module where they differ, zeros standing beyond it; empty where all have the adapter's.
    """

    adapter: Adapter
    plan: LocalPlan = PLAIN_PLAN
    wire: str = "float32"
    ranks: Ranks = field(default_factory=dict)

    def fitted(self, rank: int, most_bytes: int = 0, worth: Worth = NO_WORTH) -> Start:
        """Return the start exactly as a client of LoRA rank ``rank`` decodes it (0: any rank).

        The adapter is truncated to the client's rank and to its budget of ``most_bytes`` for the factors (0: no budget;
        :mod:`models.adapters.rank_budget`), each time by the best low-rank approximation (Eckart-Young). What is sent
        is also rounded to the number format, so that rounding errors are not mistaken for an update by the client.
        """
        adapter = self.adapter.truncated(rank) if 0 < rank < self.adapter.rank else self.adapter
        ranks = self.ranks
        if most_bytes:
            adapter, ranks = within_budget(adapter, most_bytes, self.wire, worth)
        if self.wire != "float32":
            flat = flattened(chosen(adapter, self.plan.down), ranks)
            shapes = {name: tuple(one.shape) for name, one in flat.items()}
            rounded = stacked(unpack(pack(flat, self.wire), self.wire, shapes), ranks, adapter.rank)
            adapter = Adapter.from_tensors({**adapter.tensors(), **rounded})
        return replace(self, adapter=adapter, ranks=ranks)

    def whole(self) -> Adapter:
        """Return everything that is added to the backbone as one adapter, core and base included, of any rank."""
        adapter = with_core(self.adapter, self.plan.frame, self.plan.core)
        return adapter if self.plan.base is None else combine([adapter, self.plan.base], [1.0, 1.0])

    def message(self, **entries: Any) -> RecordDict:
        """Return the content of a message that brings the start, with other entries beside its own."""
        config = config_record(**entries, **self.entries())
        return RecordDict({"config": config, **self.records()})

    def entries(self) -> dict[str, Any]:
        """Return the entries of a message's ConfigRecord that say how the arrays are to be read."""
        plan = self.plan
        apart = {"module_ranks": ranks_as_list(self.ranks)} if self.ranks else {}
        return {
            "rank": self.adapter.rank,
            "wire": self.wire,
            "trains": plan.trains,
            "down": list(plan.down),
            "up": list(plan.up),
            "personal": plan.personal,
            "base_rank": plan.base_rank,
            "frame_rank": plan.frame_rank,
            "gradient_rank": plan.gradient_rank,
            **apart,
        }

    def records(self) -> dict[str, ArrayRecord]:
        """Return the arrays that travel: the chosen parts in the number format, core, frame and base as float32."""
        plan = self.plan
        records = {"arrays": encode_packed(flattened(chosen(self.adapter, plan.down), self.ranks), self.wire)}
        if plan.core:
            records["core"] = encode_tensors(plan.core, np.float32)
        if plan.frame is not None:
            records["frame"] = encode_tensors(chosen(plan.frame, ("A", "B")), np.float32)
        if plan.base is not None and plan.base_rank:
            records["base"] = encode_tensors(chosen(plan.base, ("A", "B")), np.float32)
        return records

    @classmethod
    def decode(cls, content: RecordDict, config: ConfigRecord, fresh: Adapter) -> Start:
        """Inverse of :meth:`entries` and :meth:`records`; what was not sent is taken from ``fresh``.

        Raises:
            ProtocolError: the plan is unknown, the rank is above that of ``fresh``, or an array is not as it says.
        """
        rank, trains, wire = require(config, "rank", int), require(config, "trains", str), require_wire(config)
        if not 1 <= rank <= fresh.rank:
            raise ProtocolError(f"a start of rank {rank} does not fit this client's rank {fresh.rank}")
        template = resized(fresh, rank)
        base = _product(content, "base", template, require(config, "base_rank", int))
        frame = _product(content, "frame", template, require(config, "frame_rank", int))
        plan = LocalPlan(
            trains,
            require_list(config, "down", str),
            require_list(config, "up", str),
            require(config, "personal", bool),
            base,
            frame,
            optional_tensors(content, "core", core_shapes(frame)),
            require(config, "gradient_rank", int),
        )
        blocks = {kind: len(factors.B) for kind, factors in template.low_rank.items()}
        told = require_list(config, "module_ranks", int) if "module_ranks" in config else []
        ranks = ranks_from_list(told, blocks, rank)
        return cls(filled(content, template, plan.down, wire, ranks), plan, wire, ranks)


def part_of(name: str) -> str:
    """Return which of ``A``, ``B`` and ``head`` a tensor of :meth:`models.adapters.adapter.Adapter.tensors` is."""
    return HEAD if name == HEAD else name.rsplit(".lora_", 1)[-1]


def chosen(adapter: Adapter, parts: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of ``adapter`` that belong to ``parts``, by name."""
    return {name: tensor for name, tensor in adapter.tensors().items() if part_of(name) in parts}


def core_shapes(frame: Adapter | None) -> Shapes:
    """Return kind -> shape of the core between the factors of a frame; empty where there is none."""
    kinds = {} if frame is None else frame.low_rank
    return {kind: (*factors.B.shape[:-2], factors.rank, factors.rank) for kind, factors in kinds.items()}


def product_shapes(adapter: Adapter, rank: int) -> Shapes:
    """Return name -> shape of a base or frame of ``rank`` for the modules of ``adapter``.

    Raises:
        ProtocolError: the rank is negative or absurdly large.
    """
    if not 0 <= rank <= MAX_RANK:
        raise ProtocolError(f"a product of rank {rank} cannot stand beside the frozen weights")
    shapes: dict[str, tuple[int, ...]] = {}
    for kind, one in adapter.low_rank.items() if rank else ():
        shapes[f"{kind}.lora_A"] = (*one.A.shape[:-2], rank, one.A.shape[-1])
        shapes[f"{kind}.lora_B"] = (*one.B.shape[:-2], one.B.shape[-2], rank)
    return shapes


def with_core(adapter: Adapter, frame: Adapter | None, core: Mapping[str, Tensor]) -> Adapter:
    """Return the head of ``adapter`` with dW = B R A, written as the factors B and R A of the frame and its core.

    Where there is no frame it is the adapter itself.
    """
    if frame is None:
        return adapter
    turned = {kind: Factors(B=factors.B, A=core[kind] @ factors.A) for kind, factors in frame.low_rank.items()}
    return Adapter(turned, adapter.head)


def filled(
    content: RecordDict,
    template: Adapter,
    parts: Sequence[str],
    wire: str = "float32",
    ranks: Ranks = NO_RANKS,
) -> Adapter:
    """Return ``template`` with the ``parts`` that the message brings in the number format ``wire``, of ``ranks``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in chosen(template, parts).items()}
    flat = decode_packed(arrays_of(content), flattened_shapes(shapes, ranks), wire)
    return Adapter.from_tensors({**template.tensors(), **stacked(flat, ranks, template.rank)})


def _product(content: RecordDict, name: str, like: Adapter, rank: int) -> Adapter | None:
    """Return the factors of ``rank`` that the message brings under ``name``, without a head; None where rank is 0."""
    tensors = optional_tensors(content, name, product_shapes(like, rank))
    return Adapter.from_tensors({**tensors, HEAD: 0 * like.head}) if tensors else None


def optional_tensors(content: RecordDict, name: str, shapes: Shapes) -> dict[str, Tensor]:
    """Return the tensors of ``shapes`` that the message brings under ``name``; nothing where there are no shapes."""
    return decode_tensors(arrays_of(content, name), shapes) if shapes else {}
