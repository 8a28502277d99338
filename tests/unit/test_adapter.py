from __future__ import annotations

import pytest
import torch

from models.adapters.adapter import Adapter, AdapterError, check_same_shapes, combine, subtract
from models.adapters.batch import AdapterBatch
from models.personalization.prior import add_prior, remove_prior
from tests.builders import RANK, assert_same_products, make_adapter, products


def test_tensors_and_back_is_the_identity() -> None:
    adapter = make_adapter(0)
    again = Adapter.from_tensors(adapter.tensors())
    assert all(torch.equal(one, again.tensors()[name]) for name, one in adapter.tensors().items())


def test_combine_is_the_sum_of_products() -> None:
    adapters, weights = [make_adapter(seed) for seed in range(3)], [0.5, -1.0, 2.0]
    total = products(combine(adapters, weights))
    for name, value in total.items():
        expected = sum(w * products(one)[name] for one, w in zip(adapters, weights, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_subtract_and_add_back() -> None:
    left, right = make_adapter(0), make_adapter(1)
    assert_same_products(combine([subtract(left, right), right], [1.0, 1.0]).truncated(RANK), left, 1e-4)


def test_truncation_and_alignment_keep_the_product() -> None:
    adapter, reference = make_adapter(0), make_adapter(1)
    assert_same_products(adapter.truncated(RANK).aligned(reference), adapter, 1e-4)


def test_another_shape_is_named() -> None:
    with pytest.raises(AdapterError, match=r"attn\.qkv\.lora_A: expected \(4, 2, 5\), got \(4, 3, 5\)"):
        check_same_shapes(make_adapter(0, rank=3), make_adapter(0))


def test_prior_is_added_to_the_bias_alone_and_taken_off_again() -> None:
    adapter, pi = make_adapter(0), torch.tensor([0.2, 0.3, 0.5])
    with_prior = add_prior(adapter, pi, gamma=0.7)
    torch.testing.assert_close(with_prior.head[:, -1], adapter.head[:, -1] + 0.7 * pi.log())
    assert torch.equal(with_prior.head[:, :-1], adapter.head[:, :-1])
    torch.testing.assert_close(remove_prior(with_prior, pi, gamma=0.7).head, adapter.head)


def test_a_batch_gives_back_its_adapters_and_weighs_their_products() -> None:
    adapters = [make_adapter(seed) for seed in (0, 1, 2)]
    batch = AdapterBatch.stack(adapters)
    assert len(batch) == 3
    weights = torch.tensor([0.5, -1.0, 2.0])
    for adapter, same, times, weight in zip(adapters, batch, batch.weighted(weights), (0.5, -1.0, 2.0), strict=True):
        assert_same_products(same, adapter, 0.0)
        assert_same_products(times, adapter.scaled(weight), 1e-6)
