"""The head that a client makes of the anchor's and of its own samples: the optimum, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from models.sums.own_head import own_head

CLASSES, WIDTH = 4, 6


def data(count: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return centres[labels] + torch.randn(count, WIDTH, generator=generator), labels


def anchor() -> Tensor:
    return 0.2 * torch.randn(CLASSES, WIDTH + 1, generator=torch.Generator().manual_seed(5))


def accuracy(head: Tensor, features: Tensor, labels: Tensor) -> float:
    return float((features @ head[:, :-1].mT + head[:, -1]).argmax(dim=1).eq(labels).float().mean())


def test_it_is_the_optimum_that_another_solver_finds() -> None:
    (features, labels), head, deviation = data(), anchor(), 2.0
    x = np.hstack([features.numpy().astype(float), np.ones((len(features), 1))])
    before = head.numpy().astype(float)
    weight = float((x**2).sum(axis=1).mean()) / (2 * deviation**2)

    def loss(flat: np.ndarray) -> float:
        own = flat.reshape(before.shape)
        logits = x @ own.T
        most = logits.max(axis=1, keepdims=True)
        log_sum = (most + np.log(np.exp(logits - most).sum(axis=1, keepdims=True)))[:, 0]
        entropy = (log_sum - logits[np.arange(len(x)), labels.numpy()]).sum()
        return float(entropy + weight * ((own - before) ** 2).sum())

    found = own_head(head, features, labels, deviation)
    other = minimize(loss, before.ravel(), method="BFGS", options={"gtol": 1e-7, "maxiter": 5000}).x
    torch.testing.assert_close(found.double(), torch.from_numpy(other.reshape(before.shape)), rtol=0, atol=2e-4)


def test_a_client_without_samples_has_the_anchors_head() -> None:
    head = anchor()
    assert own_head(head, torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64)) is head


def test_it_stays_at_the_anchor_or_follows_the_samples_as_the_deviation_says() -> None:
    (features, labels), head = data(), anchor()
    torch.testing.assert_close(own_head(head, features, labels, 1e-4), head, rtol=0, atol=1e-4)
    assert accuracy(own_head(head, features, labels, 100.0), features, labels) == 1.0
    others = data(200, seed=1)
    assert accuracy(own_head(head, features, labels), *others) > accuracy(head, *others) + 0.2


def test_longer_features_before_a_shorter_head_are_the_same_client() -> None:
    features, labels = data()
    found = []
    for scale in (1e3, 1e5):  # both so long that the 1 beside the features is nothing
        head = anchor()
        head[:, :-1] /= scale
        own = own_head(head, scale * features, labels)
        found.append(scale * features @ own[:, :-1].mT + own[:, -1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-2)


def test_the_same_samples_in_another_order_give_the_same_head() -> None:
    (features, labels), head = data(), anchor()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(own_head(head, features[order], labels[order]), own_head(head, features, labels))
