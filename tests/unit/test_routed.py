"""FlyLoRA: the layer against numpy, the average of B against the average of outputs, and what PEFT cannot write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.task import build_model
from models.adapters.adapter import AdapterError
from models.adapters.layers import factor
from models.adapters.routed import route, sparse_rows, strongest

N, M, RANK, ACTIVE, SCALING = 10, 7, 5, 2, 3.0


def routed_layer() -> tuple[nn.Module, LoraLayer]:
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(N, M)), LoraConfig(r=RANK, lora_alpha=SCALING * RANK, target_modules=["0"])
    )
    layer = model.base_model.model[0]
    route(layer, ACTIVE)
    with torch.no_grad():
        factor(layer.lora_B).weight.normal_()
    return model.eval(), layer


def test_a_token_adds_what_its_strongest_components_make() -> None:
    model, layer = routed_layer()
    x = torch.randn(3, 4, N)
    W, b = (one.detach().numpy() for one in (layer.base_layer.weight, layer.base_layer.bias))
    A, B = (factor(one).weight.detach().numpy() for one in (layer.lora_A, layer.lora_B))
    expected = np.empty((3, 4, M))
    for place in np.ndindex(3, 4):
        token = x[place].numpy()
        answers = A @ token
        kept = np.argsort(-np.abs(answers))[:ACTIVE]
        expected[place] = W @ token + b + SCALING * sum(B[:, one] * answers[one] for one in kept)
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), layer.base_layer(x))


def test_the_average_of_b_is_the_average_of_outputs_and_that_of_both_factors_is_not() -> None:
    model, layer = routed_layer()
    x, B, A = torch.randn(40, N), torch.randn(2, M, RANK), torch.randn(2, RANK, N)
    lora_A, lora_B = factor(layer.lora_A).weight, factor(layer.lora_B).weight

    @torch.no_grad()
    def output(left: Tensor, right: Tensor) -> Tensor:
        lora_B.copy_(left)
        lora_A.copy_(right)
        return model(x)

    mean = (output(B[0], A[0]) + output(B[1], A[0])) / 2
    torch.testing.assert_close(output(B.mean(dim=0), A[0]), mean)
    both = (output(B[0], A[0]) + output(B[1], A[1])) / 2
    assert not torch.allclose(output(B.mean(dim=0), A.mean(dim=0)), both, atol=0.1)


def test_only_the_columns_of_chosen_components_get_a_gradient() -> None:
    model, layer = routed_layer()
    x = torch.randn(1, N)
    model(x).sum().backward()
    chosen = strongest(x @ factor(layer.lora_A).weight.mT, ACTIVE)[0] != 0
    assert int(chosen.sum()) == ACTIVE
    gradient = factor(layer.lora_B).weight.grad
    assert gradient is not None
    assert torch.equal(gradient.abs().sum(dim=0) > 0, chosen)


def test_rows_are_sparse_and_as_long_as_those_of_a_fresh_lora() -> None:
    rows = sparse_rows(300, 40, 0.25, torch.Generator().manual_seed(1))
    assert (rows != 0).sum(dim=1).tolist() == [10] * 300
    assert float(rows.square().sum(dim=1).mean()) == pytest.approx(1 / 3, rel=0.1)
    assert bool((rows != 0).any(dim=0).all())


def test_a_model_of_kind_fly_has_one_sparse_start_for_all_and_writes_nothing_for_peft(tmp_path: Path) -> None:
    config = RunConfig.parse({"method": "ffa-lora", "lora.adapter": "fly", "lora.rank": 8, "lora.active": 2})
    model = build_model(config.data, config.model, config.lora)
    start = model.fresh_adapter(0)
    for kind, factors in start.low_rank.items():
        filled = (factors.A != 0).sum(dim=-1)
        assert filled.unique().tolist() == [round(factors.A.shape[-1] / 4)], kind
        assert torch.equal(factors.A, model.fresh_adapter(0).low_rank[kind].A)
        assert not factors.B.any()
    with pytest.raises(AdapterError, match="which PEFT has no form for"):
        model.save(start, tmp_path / "adapter")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lora.adapter": "fly"}, "lora.adapter = fly trains one factor .* needs method = ffa-lora"),
        (
            {"lora.adapter": "fly", "method": "ffa-lora", "lora.active": 5},
            "lora.active is 5, .* lora.rank 4 has no more",
        ),
    ],
)
def test_what_cannot_be_routed_is_refused_before_round_1(values: dict[str, str | int], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.parse(values)
