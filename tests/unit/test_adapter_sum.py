from __future__ import annotations

import pytest
import torch

from models.adapters.adapter import combine
from models.adapters.adapter_sum import AdapterSum
from tests.builders import RANK, assert_same_products, make_adapter

ADAPTERS = [make_adapter(seed, rank=1 + seed % 3) for seed in range(12)]
WEIGHTS = [(index + 1) / 78 for index in range(12)]


def summed(order: range) -> AdapterSum:
    total = AdapterSum()
    for index in order:
        total.add(ADAPTERS[index], WEIGHTS[index])
    return total


def test_the_sum_is_that_of_the_concatenation_cut_to_the_rank() -> None:
    got, together = summed(range(12)), combine(ADAPTERS, WEIGHTS)
    assert_same_products(got.truncated(RANK), together.truncated(RANK), 1e-5)
    kept, rest = got.split(RANK, 100)
    assert_same_products(combine([kept, rest], [1.0, 1.0]), together, 1e-5)


def test_the_order_of_arrival_moves_the_sum_by_rounding_only() -> None:
    there, back = summed(range(12)).truncated(RANK), summed(range(11, -1, -1)).truncated(RANK)
    assert_same_products(there, back, 1e-6)


def test_parts_may_have_weights_of_their_own() -> None:
    weights = {part: float(place) for place, part in enumerate(ADAPTERS[0].parts)}
    total = AdapterSum.of(ADAPTERS[3])
    total.add(ADAPTERS[0], weights)
    assert_same_products(total.truncated(5), combine([ADAPTERS[3], ADAPTERS[0]], [1.0, weights]).truncated(5), 1e-5)


def test_a_sum_of_nothing_has_no_head() -> None:
    with pytest.raises(ValueError, match="at least one adapter"):
        AdapterSum().head()


def test_the_head_of_one_is_its_head() -> None:
    assert torch.equal(AdapterSum.of(ADAPTERS[0]).head(), ADAPTERS[0].head)
