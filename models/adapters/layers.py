"""What a local plan changes of PEFT's LoRA layers while a client works: trained factors, cores, a base.

PEFT's LoRA layer computed in one large product: x (W + s B A)^T instead of x W^T + s (x A^T) B^T.

Forming W + s B A costs 2 r operations for each of its numbers, and saves, forward and backward, two thin products and
the passes over all activations that scale and add them up. Backward only the factors get a gradient, through matrices
of r rows: dB = s ((A X^T) dY)^T, dA = s (B^T dY^T) X. With r columns, as in X A^T and dY B, the products take up to
five times as long at r = 4. W + s B A is formed anew there, so no more memory is held than without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from models.adapters.adapter import Adapter

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


FEWEST_ROWS = 64
"""Rows of the input from which forming W + s B A pays."""


class FusedLoraLinear(LoraLinear):
    """A LoRA layer that PEFT made, without dropout, on a linear layer in float32; parameters and files are PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what PEFT's own forward does, up to rounding."""
        if self.disable_adapters or self.merged or args or kwargs or not _worth_it(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base = cast(nn.Linear, self.get_base_layer())
        factors = cast(nn.Linear, self.lora_A[name]).weight, cast(nn.Linear, self.lora_B[name]).weight
        result: Tensor = _LowRankLinear.apply(x, base.weight, base.bias, *factors, self.scaling[name])
        return result


class _LowRankLinear(torch.autograd.Function):
    """y = x (W + s B A)^T + b, W and b frozen.

    Shapes: x (..., in), W (out, in), b (out,), A (r, in), B (out, r), y (..., out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x, W, A, B)
        ctx.scaling = s
        return F.linear(x, torch.addmm(W, B, A, alpha=s), b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, W, A, B), s = ctx.saved_tensors, ctx.scaling
        dx = dA = dB = None
        if ctx.needs_input_grad[0]:
            dx = dy @ torch.addmm(W, B, A, alpha=s)
        X, Y = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[3]:
            dA = s * ((B.mT @ Y.mT) @ X)
        if ctx.needs_input_grad[4]:
            dB = s * ((A @ X.mT) @ Y).mT
        return dx, None, None, dA, dB, None


def fuse(layer: LoraLayer) -> None:
    """Have ``layer`` computed in one product, if it is of the plain kind."""
    base = layer.get_base_layer()
    plain = type(layer) is LoraLinear and type(base) is nn.Linear and base.weight.dtype == torch.float32
    if plain and not layer.lora_variant:
        layer.__class__ = FusedLoraLinear  # as torch.nn.utils.parametrize does; the parameters stay where they are


def _worth_it(x: Tensor) -> bool:
    """Tell whether the input has many rows; half precision would round s B A away in the sum with W."""
    exact = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    return exact and x.numel() >= FEWEST_ROWS * x.shape[-1]
