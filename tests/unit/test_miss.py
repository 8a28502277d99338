"""MiSS as a LoRA with a fixed A: PEFT's own adapter gives the same outputs, before and after training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import MissConfig, get_peft_model
from torch import Tensor, nn

from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.task import build_model
from models.adapters.layers import shared_blocks

N, M, RANK = 10, 7, 4  # n is no multiple of the rank: the last piece of the features is filled up with zeros


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(N, M)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def trained(parameter: nn.Parameter, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    optimizer = torch.optim.AdamW([parameter], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (forward(x) - y).square().mean().backward()
        optimizer.step()
    return forward(x).detach()


def test_the_shared_factor_makes_of_lora_what_peft_calls_miss() -> None:
    x, y = torch.randn(12, N), torch.randn(12, M)
    theirs = get_peft_model(OneLayer(), MissConfig(r=RANK, target_modules=["layer"], init_weights=True))
    block = theirs.base_model.model.layer.miss_block["default"]
    base, scaling = OneLayer(), 2.0
    A = shared_blocks(RANK, N) / scaling
    B = nn.Parameter(torch.zeros(M, RANK))

    def ours(x: Tensor) -> Tensor:
        return base(x).detach() + scaling * x @ A.mT @ B.mT

    torch.testing.assert_close(trained(B, ours, x, y), trained(block, theirs, x, y))
    torch.testing.assert_close(B.detach(), block.detach().mT)


def test_a_model_of_kind_miss_begins_with_the_shared_factor_over_the_scaling() -> None:
    config = RunConfig.parse({"method": "ffa-lora", "lora.adapter": "miss"})
    model = build_model(config.data, config.model, config.lora)
    for factors in model.fresh_adapter(0).low_rank.values():
        for block in factors.A:
            torch.testing.assert_close(block * model.scaling, shared_blocks(*block.shape))
        assert not factors.B.any()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("dora", "no average of adapters is the average of weights"),
        ("vera", "products of two trained vectors"),
        ("randlora", "products of two trained diagonals"),
        ("ia3", "no product of low rank"),
        ("miss", "needs method = ffa-lora"),
    ],
)
def test_what_cannot_be_averaged_exactly_is_refused_before_round_1(kind: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.parse({"lora.adapter": kind})
