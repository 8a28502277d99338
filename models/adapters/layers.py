"""PEFT's LoRA layers while a client works: what a local plan trains, and one large product instead of three.

A fused layer computes x (W + s B A)^T instead of x W^T + s (x A^T) B^T. Forming W + s B A costs 2 r operations for each
of its numbers, and saves, forward and backward, two thin products and the passes over all activations that scale and
add them up. Backward only the factors get a gradient, through matrices of r rows: dB = s ((A X^T) dY)^T,
dA = s (B^T dY^T) X. With r columns, as in X A^T and dY B, the products take up to five times as long at r = 4.
W + s B A is formed anew in the backward pass, so no more memory is held than without.
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

from models.adapters.adapter import Adapter, Core

Layers = Mapping[str, Sequence[LoraLayer]]
FEWEST_ROWS = 64
"""Rows of the input from which forming W + s B A pays."""
BOTH = ("lora_A", "lora_B")
FROZEN = {"all": (), "A": ("lora_B",), "B": ("lora_A",), "core": BOTH, "head": BOTH, "body": ()}
"""The factors that a plan keeps as they are, by what it trains."""


def factor(factors: nn.ModuleDict) -> nn.Linear:
    """Return the linear layer that holds ``lora_A`` or ``lora_B`` of the only adapter that a layer has."""
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
def prepared(layers: Layers, head: nn.Module, trains: str, core: Core | None, base: Adapter | None) -> Iterator[None]:
    """Have what a plan names trained, on top of the plan's base; afterwards all but that is as before.

    Args:
        layers: kind -> LoRA layers in the order of the blocks, their adapter loaded.
        head: the trainable head.
        trains: a key of ``FROZEN``.
        core: stands in place of the factors where ``trains`` is ``core``.
        base: added to the frozen weights, times the layers' scaling.
    """
    with ExitStack() as stack:
        if trains == "body":
            stack.callback(head.requires_grad_(False).requires_grad_, True)
        for kind, ones in layers.items():
            if base is not None:
                for layer, product in zip(ones, base.low_rank[kind].product(), strict=True):
                    stack.enter_context(_on_base(layer, product))
            for index, layer in enumerate(ones):
                for name in FROZEN[trains]:
                    stack.callback(getattr(layer, name).requires_grad_(False).requires_grad_, True)
                if core is not None:
                    fixed = core.frame.low_rank[kind]
                    stack.enter_context(_with_core(layer, fixed.B[index], core.R[kind][index], fixed.A[index]))
        yield


@contextmanager
def _with_core(layer: LoraLayer, B: Tensor, R: Tensor, A: Tensor) -> Iterator[None]:
    with _with_factors(layer, B, A):
        lora_A = factor(layer.lora_A)
        parametrize.register_parametrization(lora_A, "weight", CoreFactor(R.to(lora_A.weight.device)))
        try:
            yield
        finally:
            parametrize.remove_parametrizations(lora_A, "weight", leave_parametrized=False)


@contextmanager
def _with_factors(layer: LoraLayer, B: Tensor, A: Tensor, *, trained: bool = False) -> Iterator[None]:
    """Have a layer work with B (m, r) and A (r, n) of any rank in place of its own, B trained where asked for."""
    lora_A, lora_B = factor(layer.lora_A), factor(layer.lora_B)
    before = lora_A.weight, lora_B.weight
    lora_A.weight = nn.Parameter(A.to(before[0]), requires_grad=False)
    lora_B.weight = nn.Parameter(B.to(before[1]), requires_grad=trained)
    try:
        yield
    finally:
        lora_A.weight, lora_B.weight = before


@contextmanager
def full_rank(layers: Layers) -> Iterator[None]:
    """Have every layer work with A = I and B = 0 on top of the product that it carries, so that dL/dB = s dL/dW."""
    with ExitStack() as stack:
        for layer in (one for ones in layers.values() for one in ones):
            A, B = factor(layer.lora_A).weight.detach(), factor(layer.lora_B).weight.detach()
            stack.enter_context(_on_base(layer, B @ A))
            stack.enter_context(
                _with_factors(layer, torch.zeros(len(B), A.shape[1]), torch.eye(A.shape[1]), trained=True)
            )
        yield


@contextmanager
def _on_base(layer: LoraLayer, product: Tensor) -> Iterator[None]:
    weight = cast(nn.Linear, layer.get_base_layer()).weight
    before = weight.detach().clone()
    weight.data.add_(product.to(weight), alpha=next(iter(layer.scaling.values())))
    try:
        yield
    finally:
        weight.data.copy_(before)


def shared_blocks(rank: int, n: int) -> Tensor:
    """Return the fixed A = [I I .. I] (r, n) by which MiSS is a LoRA of scaling 1 whose B alone is trained.

    MiSS adds D^T sum_j x_j to W x, x_j the pieces of r features of x, the last filled up with zeros (arXiv 2409.15371):
    dW = D^T A, linear in D (r, m), so that the average of clients' blocks is the average of their weights.
    """
    return torch.eye(rank).repeat(1, -(-n // rank))[:, :n]


def read_core(layers: Layers) -> dict[str, Tensor]:
    """Return kind -> R (blocks, r, r) of layers that train a core."""
    path = "parametrizations.weight.0.core"
    return {
        kind: torch.stack([factor(layer.lora_A).get_parameter(path).detach().cpu().clone() for layer in ones])
        for kind, ones in layers.items()
    }


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
    """Have ``layer`` computed in one product, unless it has dropout, a variant or weights of another type."""
    base = layer.get_base_layer()
    plain = type(layer) is LoraLinear and type(base) is nn.Linear and base.weight.dtype == torch.float32
    if plain and not layer.lora_variant:
        layer.__class__ = FusedLoraLinear  # as torch.nn.utils.parametrize does; the parameters stay where they are


def _worth_it(x: Tensor) -> bool:
    """Tell whether the input has many rows; half precision would round s B A away in the sum with W."""
    exact = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    return exact and x.numel() >= FEWEST_ROWS * x.shape[-1]
