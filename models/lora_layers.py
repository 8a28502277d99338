"""What a local plan changes of PEFT's LoRA layers while a client works: trained factors, cores, a base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.adapter import Adapter

Layers = Mapping[str, Sequence[LoraLayer]]


def factor(factors: nn.ModuleDict) -> nn.Linear:
    """Return the linear layer that holds ``lora_A`` or ``lora_B`` of the one adapter there is."""
    return cast(nn.Linear, next(iter(factors.values())))


class CoreFactor(nn.Module):
    """lora_A as R A with A frozen and R (r, r) trained (Fed-SB, arXiv 2502.15436)."""

    def __init__(self, core: Tensor) -> None:
        super().__init__()
        self.core = nn.Parameter(core.clone())

    def forward(self, frozen: Tensor) -> Tensor:
        """Return R A."""
        return self.core @ frozen


@contextmanager
def prepared(layers: Layers, trains: str, core: Mapping[str, Tensor], base: Adapter | None) -> Iterator[None]:
    """Have ``layers`` train what a plan says on top of its base; afterwards they are as before, adapter apart.

    Args:
        layers: kind -> LoRA layers in the order of the blocks, their adapter loaded.
        trains: ``all``, ``A``, ``B`` or ``core``.
        core: kind -> R (blocks, r, r) where a core is trained.
        base: added to the frozen weights, times the layers' scaling.
    """
    with ExitStack() as stack:
        if base is not None:
            stack.enter_context(_on_base(layers, base))
        if trains != "all":
            frozen = [one.lora_A for kind in layers.values() for one in kind] if trains != "A" else []
            frozen += [one.lora_B for kind in layers.values() for one in kind] if trains != "B" else []
            stack.enter_context(_frozen(frozen))
        if trains == "core":
            stack.enter_context(_with_core(layers, core))
        yield


def read_core(layers: Layers) -> dict[str, Tensor]:
    """Return kind -> R (blocks, r, r) of layers that train a core."""
    return {kind: torch.stack([_core_of(layer) for layer in ones]) for kind, ones in layers.items()}


def _core_of(layer: LoraLayer) -> Tensor:
    core = factor(layer.lora_A).get_parameter("parametrizations.weight.0.core")
    return core.detach().cpu().clone()


@contextmanager
def _frozen(factors: Sequence[nn.ModuleDict]) -> Iterator[None]:
    for one in factors:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in factors:
            one.requires_grad_(True)


@contextmanager
def _with_core(layers: Layers, core: Mapping[str, Tensor]) -> Iterator[None]:
    places = [(factor(layer.lora_A), core[kind][index]) for kind in layers for index, layer in enumerate(layers[kind])]
    for place, value in places:
        parametrize.register_parametrization(place, "weight", CoreFactor(value.to(place.weight.device)))
    try:
        yield
    finally:
        for place, _ in places:
            parametrize.remove_parametrizations(place, "weight", leave_parametrized=False)


@contextmanager
def _on_base(layers: Layers, base: Adapter) -> Iterator[None]:
    kept = []
    for kind, ones in layers.items():
        for layer, product in zip(ones, base.low_rank[kind].product(), strict=True):
            weight = cast(nn.Linear, layer.get_base_layer()).weight
            kept.append((weight, weight.detach().clone()))
            scaling = next(iter(layer.scaling.values()))
            weight.data.add_(product.to(weight), alpha=scaling)
    try:
        yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)
