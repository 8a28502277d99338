from __future__ import annotations

import math

import pytest
import torch

from models.personalization.signature import Signature, Standardizer, class_frequencies, compute_signature


def test_frequencies_are_smoothed() -> None:
    pi = class_frequencies(torch.tensor([0, 0, 2]), num_classes=4, smoothing=0.5)
    torch.testing.assert_close(pi, torch.tensor([2.5, 0.5, 1.5, 0.5]) / 5)


def test_signature_describes_features_and_labels() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    signature = compute_signature(features, torch.tensor([0, 1, 1, 1]), num_classes=2, smoothing=1.0)
    assert signature.feature_mean.tolist() == [2.0, 4.0]
    assert signature.feature_std.tolist() == [1.0, 2.0]
    assert signature.log_num_examples == pytest.approx(math.log(4))
    again = Signature.from_vector(signature.vector(), num_classes=2)
    torch.testing.assert_close(again.vector(), signature.vector())


def test_one_sample_has_no_spread() -> None:
    signature = compute_signature(torch.ones(1, 3), torch.tensor([0]), num_classes=2, smoothing=1.0)
    assert signature.feature_std.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("vector", "sentence"),
    [
        (torch.ones(6), "cannot have shape"),
        (torch.tensor([1.0, float("nan"), 0.5, 0.5, 1.0]), "must be finite"),
        (torch.tensor([1.0, 1.0, 0.5, 0.9, 1.0]), "sum to 1"),
        (torch.tensor([1.0, 1.0, -0.5, 1.5, 1.0]), "must be positive"),
    ],
)
def test_malformed_vectors_are_refused(vector: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Signature.from_vector(vector, num_classes=2)


def test_standardizer_leaves_a_constant_coordinate_at_zero() -> None:
    vectors = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    (low, zero), (high, also_zero) = Standardizer.fit(vectors)(vectors).tolist()
    assert (zero, also_zero) == (0.0, 0.0)
    assert high == pytest.approx(1 / 1.4826)
    assert low == -high


def test_standardizer_gives_normal_signatures_unit_scale_and_a_rare_value_its_standard_deviation() -> None:
    vectors = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 30.0]) + 7
    assert torch.allclose(Standardizer.fit(vectors)(vectors).std(dim=0), torch.ones(3), atol=0.05)
    rare = torch.tensor([0.0] * 9 + [1.0])[:, None]
    assert float(Standardizer.fit(rare)(rare).std(correction=0)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("extreme", [100.0, 1e30])
def test_one_signature_moves_the_distances_of_the_others_by_its_share_only(extreme: float) -> None:
    honest = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    told = torch.cat([honest, torch.full((1, 5), extreme)])
    apart, with_it = (torch.pdist(Standardizer.fit(table)(honest)) for table in (honest, told))
    assert float((with_it / apart).log().abs().max()) < 0.35
    assert float(Standardizer.fit(told)(told)[-1].abs().max()) == 5.0
