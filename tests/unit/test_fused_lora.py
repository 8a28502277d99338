from __future__ import annotations

from typing import cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from models.adapters.layers import FEWEST_ROWS, FusedLoraLinear, fuse

N, M, RANK = 12, 20, 3


def layers(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[LoraLinear, LoraLinear]:
    """Return PEFT's layer and the same layer fused."""
    torch.manual_seed(0)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(N, M, bias=bias, dtype=dtype))
        peft = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=5, target_modules=["0"]))  # type: ignore[arg-type]
        layer = cast(LoraLinear, peft.base_model.model[0])  # type: ignore[index, union-attr]
        nn.init.normal_(cast(nn.Linear, layer.lora_B["default"]).weight)
        found.append(layer)
    fuse(found[1])
    return found[0], found[1]


def gradients(layer: LoraLinear, x: Tensor) -> list[Tensor | None]:
    x = x.clone().requires_grad_()
    y = layer(x)
    torch.autograd.backward((y * torch.linspace(-1, 1, M)).square().sum())
    return [y.detach(), x.grad, *(one.grad for one in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(FEWEST_ROWS, N), (8, FEWEST_ROWS // 8, N), (3, N)])
def test_output_and_gradients_are_those_of_peft(shape: tuple[int, ...], bias: bool) -> None:
    plain, fused = layers(bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for expected, got in zip(gradients(plain, x), gradients(fused, x), strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_a_frozen_factor_gets_no_gradient(frozen: str) -> None:
    plain, fused = layers()
    x = torch.randn(FEWEST_ROWS, N, generator=torch.Generator().manual_seed(1))
    for layer in (plain, fused):
        getattr(layer, frozen).requires_grad_(False)
        gradients(layer, x)
    for name, parameter in plain.named_parameters():
        assert (parameter.grad is None) == (dict(fused.named_parameters())[name].grad is None)


def test_a_switched_off_adapter_changes_nothing() -> None:
    plain, fused = layers()
    x = torch.randn(FEWEST_ROWS, N)
    for layer in (plain, fused):
        layer.enable_adapters(False)
    assert torch.equal(plain(x), fused(x))


def test_half_precision_is_left_to_peft() -> None:
    """W + s B A in bfloat16 would lose an adapter far smaller than the weights."""
    plain, fused = layers()
    x = torch.randn(FEWEST_ROWS, N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(x), fused(x))
    assert type(layers(dtype=torch.bfloat16)[1]) is LoraLinear


def test_names_of_parameters_stay_those_of_peft() -> None:
    plain, fused = layers()
    assert isinstance(fused, FusedLoraLinear)
    assert plain.state_dict().keys() == fused.state_dict().keys()
