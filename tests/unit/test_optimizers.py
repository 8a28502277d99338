"""Local optimisers that know the factors: equations of the papers, gauges, padded ranks, and PEFT's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from hyperlora.data.digits import digits_public
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter
from models.adapters.optimizers import OptimizerSpec, equivalent_gradients
from models.backbones.loading import build_backbone
from models.lowrank.factors import Factors

M, R, N, SCALING = 7, 3, 5, 2.0


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projected(G: Tensor, B: Tensor, A: Tensor) -> Tensor:
    """P_B G + (1 - P_B) G P_A, the nearest to G that B dA + dB A can be."""
    P_B, P_A = B @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ A
    return P_B @ G + (torch.eye(len(B), dtype=G.dtype) - P_B) @ G @ P_A


def of_factors(G: Tensor, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    return SCALING * G @ A.mT, SCALING * B.mT @ G


@dataclass
class OnePair:
    """What an optimiser needs of a model: one module, loss ||s B A - target||^2 / 2."""

    left: nn.Parameter
    right: nn.Parameter
    scaling: float = SCALING

    def factor_pairs(self) -> dict[str, list[tuple[nn.Parameter, nn.Parameter]]]:
        return {"kind": [(self.left, self.right)]}

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [one for one in (self.right, self.left) if one.requires_grad]

    def gradient(self, target: Tensor) -> Tensor:
        return self.scaling * self.left.detach() @ self.right.detach() - target

    def step(self, optimizers: list, target: Tensor) -> None:
        (0.5 * (self.scaling * self.left @ self.right - target).square().sum()).backward()
        for one in optimizers:
            one.step()
            one.zero_grad()


def pair(seed: int = 0, zero_from: int = R) -> OnePair:
    keep = (torch.arange(R) < zero_from).double()
    return OnePair(nn.Parameter(draw(M, R, seed=seed) * keep), nn.Parameter(draw(R, N, seed=seed + 1) * keep[:, None]))


def test_lora_pro_moves_the_product_along_the_nearest_to_the_gradient() -> None:
    B, A, G = draw(2, M, R), draw(2, R, N, seed=1), draw(2, M, N, seed=2)
    dB, dA = of_factors(G, B, A)
    of_B, of_A = equivalent_gradients(B, A, dB, dA, SCALING)
    moved = SCALING * (B @ of_A + of_B @ A)
    for index in range(2):
        torch.testing.assert_close(moved[index], projected(G[index], B[index], A[index]))


def test_lora_pro_takes_the_pair_nearest_to_the_factors_own_gradients() -> None:
    B, A, G = draw(M, R), draw(R, N, seed=1), draw(M, N, seed=2)
    dB, dA = of_factors(G, B, A)
    of_B, of_A = equivalent_gradients(B, A, dB, dA, SCALING)
    X = torch.zeros(R, R, dtype=torch.float64, requires_grad=True)
    distance = (of_A + X @ A - dA).square().sum() + (of_B - B @ X - dB).square().sum()
    (slope,) = torch.autograd.grad(distance, X)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0.0)


def test_lora_pro_moves_the_product_alike_in_every_gauge() -> None:
    B, A, G, turn = draw(M, R), draw(R, N, seed=1), draw(M, N, seed=2), draw(R, R, seed=3)
    other_B, other_A = B @ turn, torch.linalg.inv(turn) @ A
    of_B, of_A = equivalent_gradients(B, A, *of_factors(G, B, A), SCALING)
    there_B, there_A = equivalent_gradients(other_B, other_A, *of_factors(G, other_B, other_A), SCALING)
    torch.testing.assert_close(B @ of_A + of_B @ A, other_B @ there_A + there_B @ other_A)


def test_lora_pro_of_a_fresh_adapter_moves_b_alone() -> None:
    B, A, G = torch.zeros(M, R, dtype=torch.float64), draw(R, N), draw(M, N, seed=2)
    of_B, of_A = equivalent_gradients(B, A, *of_factors(G, B, A), SCALING)
    assert not of_A.any()
    torch.testing.assert_close(SCALING * of_B @ A, G @ torch.linalg.pinv(A) @ A)


def test_altlora_is_its_equations_with_adams_second_moment() -> None:
    model, target = pair(), draw(M, N, seed=9)
    optimizers = OptimizerSpec("altlora", 0.01, 0.0).build(model)
    B, A = model.left.detach().clone(), model.right.detach().clone()
    m_A, v_A, m_B, v_B, last_B, last_A = 0 * A, 0 * A, 0 * B, 0 * B, B, A
    for step in (1, 2, 3):
        G = SCALING * B @ A - target
        inverse = torch.linalg.inv(B.mT @ B)
        m_A = 0.9 * (inverse @ B.mT @ last_B) @ m_A + 0.1 * (g := inverse @ (SCALING * B.mT @ G) / SCALING**2)
        v_A = 0.999 * v_A + 0.001 * g.square()
        last_B = B
        A_new = A - 0.01 * (m_A / (1 - 0.9**step)) / ((v_A / (1 - 0.999**step)).sqrt() + 1e-8)
        inverse = torch.linalg.inv(A_new @ A_new.mT)
        m_B = 0.9 * m_B @ (last_A @ A_new.mT @ inverse) + 0.1 * (g := (SCALING * G @ A.mT) @ inverse / SCALING**2)
        v_B = 0.999 * v_B + 0.001 * g.square()
        last_A = A_new
        B = B - 0.01 * (m_B / (1 - 0.9**step)) / ((v_B / (1 - 0.999**step)).sqrt() + 1e-8)
        A = A_new
        model.step(optimizers, target)
        torch.testing.assert_close(model.right.detach(), A)
        torch.testing.assert_close(model.left.detach(), B)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lora-pro", "altlora"])
def test_padded_columns_stay_zero_and_a_fixed_factor_as_it_is(name: str) -> None:
    model, target = pair(zero_from=2), draw(M, N, seed=9)
    optimizers = OptimizerSpec(name, 0.01, 0.0).build(model)
    first = float(model.gradient(target).norm())
    for _ in range(5):
        model.step(optimizers, target)
    assert not model.left[:, 2].any()
    assert not model.right[2].any()
    assert float(model.gradient(target).norm()) < first
    fixed = pair()
    fixed.right.requires_grad_(False)
    before = fixed.right.clone()
    fixed.step(OptimizerSpec(name, 0.01, 0.0).build(fixed), target)
    torch.testing.assert_close(fixed.right, before)


@pytest.fixture(scope="module")
def rooted() -> AdaptedModel:
    backbone = build_backbone(name="digits-vit", weights="", image_size=16, num_classes=10, pretraining=digits_public)
    return AdaptedModel(backbone, rank=4, alpha=8.0, last_blocks=1, rslora=True)


def test_lora_plus_has_pefts_two_rates(rooted: AdaptedModel) -> None:
    (optimizer,) = OptimizerSpec("lora+", 0.01, 0.0, ratio=16.0).build(rooted)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    for left, right in (one for pairs in rooted.factor_pairs().values() for one in pairs):
        assert (rates[id(left)], rates[id(right)]) == (0.16, 0.01)
    assert len(rates) == len(rooted.trainable_parameters())


def test_rslora_scales_by_the_root_of_the_rank_and_is_read_so_by_peft(rooted: AdaptedModel, tmp_path: Path) -> None:
    assert rooted.scaling == 4.0
    adapter = rooted.initialise(seed=1).map(lambda one: Factors(torch.ones_like(one.B), one.A))
    larger = Adapter({kind: Factors(torch.cat([f.B, f.B], -1), torch.cat([f.A, f.A], -2)) for kind, f in
                      adapter.low_rank.items()}, adapter.head)  # fmt: skip
    inputs = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    for name, one in (("same", adapter), ("larger", larger)):
        rooted.save(one, tmp_path / name)
    bare = build_backbone(
        name="digits-vit", weights="", image_size=16, num_classes=10, pretraining=digits_public
    ).module
    loaded = PeftModel.from_pretrained(bare, str(tmp_path / "larger")).eval()
    rooted.load(Adapter(adapter.map(lambda one: Factors(2 * one.B, one.A)).low_rank, adapter.head))
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), rooted.logits(rooted.embed(inputs)), rtol=1e-4, atol=1e-5)
