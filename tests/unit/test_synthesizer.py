from __future__ import annotations

import torch

from models.adapter import combine
from models.synthesizer import FixedKernel, synthesize
from tests.builders import RANK, assert_same_products, make_adapter


def test_weights_match_the_formula() -> None:
    kernel = FixedKernel(temperature=0.5, self_logit=2.0, strength=1.0)
    query, keys = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weights = kernel.weights(query, keys, torch.tensor([3.0, 6.0]), torch.tensor([True, False]))
    logits = torch.tensor([0.0, -1.0]) / 0.5 + torch.tensor([3.0, 6.0]).log() + torch.tensor([2.0, 0.0])
    torch.testing.assert_close(weights, logits.softmax(0))


def test_synthesis_is_the_truncated_sum() -> None:
    anchor, deviations = make_adapter(0), [make_adapter(seed) for seed in (1, 2)]
    made = synthesize(anchor, deviations, torch.tensor([0.25, 0.75]), strength=2.0, rank=RANK)
    expected = combine([anchor, *deviations], [1.0, 0.5, 1.5]).truncated(RANK)
    assert_same_products(made, expected, 1e-4)


def test_strength_zero_gives_the_anchor() -> None:
    anchor = make_adapter(0)
    assert synthesize(anchor, [make_adapter(1)], torch.tensor([1.0]), strength=0.0, rank=RANK) is anchor
