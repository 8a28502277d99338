"""What a method asks of a client beyond "train all of it": which factors are trained, what travels, what stays.

The default plan is plain LoRA: both factors and the head are sent, trained and sent back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from models.adapter import HEAD, Adapter, combine
from models.low_rank import Factors
from protocol.records import ProtocolError, Shapes

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
    """Return which of ``A``, ``B`` and ``head`` a tensor of :meth:`models.adapter.Adapter.tensors` is."""
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
