"""Compression of an adapter in PEFT's file: the best approximation, ranks by singular value, a size that is kept."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from models.adapters.adapter import AdapterError
from models.adapters.compression import compress, file_of, products_of
from models.lowrank.factors import Factors, truncate

SHAPES = {"base_model.model.blocks.0.a": (7, 5), "base_model.model.blocks.0.b": (9, 6)}
RANK = 4


def peft_tensors(
    scales: tuple[float, float] = (1.0, 1.0), shapes: dict[str, tuple[int, int]] = SHAPES
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {"base_model.model.head.weight": torch.ones(3, 8), "base_model.model.head.bias": torch.ones(3)}
    for (name, (m, n)), scale in zip(shapes.items(), scales, strict=True):
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, n, generator=generator)
        tensors[f"{name}.lora_B.weight"] = scale * torch.randn(m, RANK, generator=generator)
    return tensors


def squared_error(whole: dict[str, Tensor], ranks: dict[str, int]) -> float:
    values = {name: truncate(one, RANK).singular_values.double() for name, one in products_of(whole).items()}
    return sum(float(values[name][rank:].square().sum()) for name, rank in ranks.items())


def test_a_rank_keeps_the_best_approximation_of_every_product_and_tells_its_error() -> None:
    whole = peft_tensors()
    made = compress(whole, rank=2)
    for name, one in products_of(whole).items():
        matrix, kept = one.product(), products_of(made.tensors)[name]
        U, S, Vh = torch.linalg.svd(matrix)
        torch.testing.assert_close(kept.product(), U[:, :2] * S[:2] @ Vh[:2], rtol=1e-4, atol=1e-4)
        assert made.errors[name] == pytest.approx(float((matrix - kept.product()).norm() / matrix.norm()), rel=1e-3)
    assert set(made.ranks.values()) == {2}
    torch.testing.assert_close(made.tensors["base_model.model.head.weight"], whole["base_model.model.head.weight"])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_a_size_is_kept_and_no_other_ranks_of_that_size_have_a_smaller_error(share: float) -> None:
    shapes = dict.fromkeys(SHAPES, (7, 5))  # equal costs: the order by sigma^2 / (m + n) is the best one
    whole = peft_tensors((1.0, 0.4), shapes)
    smallest, largest = len(compress(whole, rank=1).content()), len(file_of(whole))
    budget = round(smallest + share * (largest - smallest - 8))
    made = compress(whole, most_bytes=budget)
    assert len(made.content()) <= budget
    total = sum(made.ranks.values())
    rivals = [dict(zip(shapes, ranks, strict=True)) for ranks in product(range(1, RANK + 1), repeat=2)]
    best = min(squared_error(whole, ranks) for ranks in rivals if sum(ranks.values()) == total)
    assert squared_error(whole, dict(made.ranks)) == pytest.approx(best)


def test_the_stronger_module_keeps_the_higher_rank_and_peft_is_told_by_patterns() -> None:
    strong, weak = SHAPES
    whole = peft_tensors((1.0, 0.1))
    made = compress(whole, most_bytes=len(compress(whole, rank=3).content()))
    assert made.ranks[strong] == RANK
    assert made.ranks[weak] < RANK
    config = made.configured({"r": RANK, "lora_alpha": 8.0, "use_rslora": False})
    assert (config["r"], config["lora_alpha"]) == (RANK, 8.0)
    assert config["rank_pattern"] == {"blocks.0.b": made.ranks[weak]}
    assert config["alpha_pattern"] == {"blocks.0.b": 2.0 * made.ranks[weak]}
    rooted = made.configured({"r": RANK, "lora_alpha": 8.0, "use_rslora": True})
    assert rooted["alpha_pattern"]["blocks.0.b"] == pytest.approx(4.0 * made.ranks[weak] ** 0.5)


def test_what_cannot_be_made_smaller_or_so_small_is_one_sentence() -> None:
    whole = peft_tensors()
    with pytest.raises(AdapterError, match=r"has rank 4 and \d+ bytes already"):
        compress(whole, rank=4)
    with pytest.raises(AdapterError, match="already"):
        compress(whole, most_bytes=10**6)
    with pytest.raises(AdapterError, match=r"at rank 1 the adapter has \d+ bytes, and 50 were"):
        compress(whole, most_bytes=50)
    with pytest.raises(AdapterError, match="no LoRA factors"):
        compress({"base_model.model.head.weight": torch.ones(3, 8)}, rank=1)


def test_a_product_of_zeros_is_cut_without_an_error() -> None:
    whole = peft_tensors((0.0, 0.0))
    made = compress(whole, rank=1)
    assert made.error == 0.0
    assert all(isinstance(one, Factors) and not one.product().any() for one in products_of(made.tensors).values())
