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
    assert Standardizer.fit(vectors)(vectors).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
