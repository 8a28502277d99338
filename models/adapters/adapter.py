"""An adapter as a value: the LoRA factors of every adapted module and the head, and sums of adapters.

Modules of one kind have the same shape, so the factors of a kind are stacked over its blocks and every operation
of :mod:`models.lowrank.factors` runs on a whole kind at once. The head is one more module, kept at full rank.
Sums and differences are taken in product space: they are adapters of a higher rank, not ones that anybody trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.lowrank.factors import Factors, align, concatenate, padded
from models.lowrank.truncation import best_rank

HEAD = "head"
Weight = float | Mapping[str, float]
"""A factor for a whole adapter, or one for each part (module kinds and ``head``)."""
NO_FORM = (
    "lora.adapter = fly chooses components for each token, which PEFT has no form for: "
    "its adapters are used in the run and are not written"
)


class AdapterError(ValueError):
    """An adapter does not fit the model or another adapter; the message is one sentence."""


@dataclass(frozen=True)
class Adapter:
    """LoRA factors by module kind, and the head.

    Attributes:
        low_rank: kind (for example ``attn.qkv``) -> factors, ``B`` (blocks, m, r) and ``A`` (blocks, r, n).
            The product ``B A`` leaves out the constant ``scaling``, which all parties share.
        head: (classes, width + 1), the weight with the bias as its last column.
    """

    low_rank: Mapping[str, Factors]
    head: Tensor

    @property
    def rank(self) -> int:
        """The rank that the factors of all modules share."""
        return next(iter(self.low_rank.values())).rank

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the module kinds, and ``head``."""
        return (*sorted(self.low_rank), HEAD)

    def tensors(self) -> dict[str, Tensor]:
        """Return all parts by name: ``<kind>.lora_A``, ``<kind>.lora_B`` and ``head``."""
        named = {HEAD: self.head}
        for kind, factors in self.low_rank.items():
            named[f"{kind}.lora_A"], named[f"{kind}.lora_B"] = factors.A, factors.B
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Adapter:
        """Inverse of :meth:`tensors`."""
        kinds = sorted(name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A"))
        low_rank = {kind: Factors(B=tensors[f"{kind}.lora_B"], A=tensors[f"{kind}.lora_A"]) for kind in kinds}
        return cls(low_rank, tensors[HEAD])

    def map(self, function: Callable[[Factors], Factors]) -> Adapter:
        """Return the adapter with ``function`` applied to the factors of every kind, and the same head."""
        return Adapter({kind: function(factors) for kind, factors in self.low_rank.items()}, self.head)

    def scaled(self, weight: float) -> Adapter:
        """Return ``weight`` times this adapter, in product space."""
        scaled = self.map(lambda factors: factors.scaled(weight))
        return Adapter(scaled.low_rank, weight * self.head)

    def truncated(self, rank: int) -> Adapter:
        """Return the best adapter of rank ``rank`` in every module (Eckart-Young)."""
        return self.map(lambda factors: best_rank(factors, rank))

    def aligned(self, reference: Adapter) -> Adapter:
        """Turn the gauge of every module to ``reference``; the products stay what they are."""
        turned = {kind: align(factors, reference.low_rank[kind]) for kind, factors in self.low_rank.items()}
        return Adapter(turned, self.head)


class Core(NamedTuple):
    """What a core is trained between: ``frame`` has the fixed B and A of every kind, ``R`` kind -> (blocks, r, r)."""

    frame: Adapter
    R: Mapping[str, Tensor]


def combine(adapters: Sequence[Adapter], weights: Sequence[Weight]) -> Adapter:
    """Return sum_i w_i adapter_i exactly: products by concatenation of factors (ranks add up), heads densely."""
    kinds = adapters[0].low_rank
    low_rank = {
        kind: concatenate(
            [adapter.low_rank[kind] for adapter in adapters], [part_of(weight, kind) for weight in weights]
        )
        for kind in kinds
    }
    heads = [part_of(weight, HEAD) * adapter.head for adapter, weight in zip(adapters, weights, strict=True)]
    return Adapter(low_rank, torch.stack(heads).sum(dim=0))


def part_of(weight: Weight, part: str) -> float:
    """Return the weight of one part."""
    return weight if isinstance(weight, float) else weight[part]


def resized(adapter: Adapter, rank: int) -> Adapter:
    """Return the adapter with the first ``rank`` columns of B and rows of A, or with zeros up to that many.

    Training leaves padded zeros at zero, since each of the two factors gets its gradient through the other.
    """
    return adapter.map(lambda one: padded(one, rank))


def subtract(left: Adapter, right: Adapter) -> Adapter:
    """Return left - right in product space; the rank is the sum of both."""
    return combine([left, right], [1.0, -1.0])


def check_same_shapes(adapter: Adapter, reference: Adapter) -> None:
    """Raise :class:`AdapterError` unless both adapters have the same parts with the same shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in reference.tensors().items()}
    got = {name: tuple(tensor.shape) for name, tensor in adapter.tensors().items()}
    if expected != got:
        wrong = sorted(name for name in expected | got if expected.get(name) != got.get(name))
        detail = ", ".join(f"{name}: expected {expected.get(name)}, got {got.get(name)}" for name in wrong[:3])
        raise AdapterError(f"the adapter does not fit the backbone's adapter ({detail})")
