"""Class statistics against plain numpy, and what a message refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from hyperlora.messages.codec import ProtocolError, encode_tensors
from hyperlora.messages.plan import Start
from hyperlora.messages.statistics import StatisticsReply, StatisticsRequest
from models.personalization.class_statistics import (
    ClassStatistics,
    bounded,
    compute_class_statistics,
    pooled_covariance,
)
from tests.builders import CLASSES, WIDTH, make_adapter


def samples(seed: int, count: int, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return torch.randn(count, width, generator=generator) + labels[:, None], labels


def dense_scatter(features: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    total = np.zeros((features.shape[1], features.shape[1]))
    for label in range(int(labels.max()) + 1):
        rows = features[labels == label].double().numpy()
        total += (rows - rows.mean(axis=0)).T @ (rows - rows.mean(axis=0))
    return total


def test_counts_sums_and_scatter_are_those_of_the_samples() -> None:
    features, labels = samples(0, 40)
    made = compute_class_statistics(features, labels, num_classes=4, rank=5)
    assert made.counts.tolist() == [*torch.bincount(labels, minlength=3).tolist(), 0]
    torch.testing.assert_close(made.sums[1], features[labels == 1].sum(dim=0))
    np.testing.assert_allclose(made.dense_scatter().numpy(), dense_scatter(features, labels), atol=1e-3)
    assert made.freedom == 40 - 3


def test_a_scatter_of_low_rank_keeps_every_variance() -> None:
    features, labels = samples(1, 40)
    made = compute_class_statistics(features, labels, num_classes=3, rank=2)
    assert made.scatter.shape == (2, 5)
    np.testing.assert_allclose(
        made.dense_scatter().diagonal().numpy(), np.diag(dense_scatter(features, labels)), rtol=1e-4
    )


def test_pooled_covariance_is_that_of_all_clients_around_their_own_class_means() -> None:
    clients = [samples(seed, count) for seed, count in ((2, 30), (3, 11))]
    made = [compute_class_statistics(*client, num_classes=3, rank=5) for client in clients]
    expected = sum(dense_scatter(*client) for client in clients) / (41 - 6)
    np.testing.assert_allclose(pooled_covariance(made, 0.0).numpy(), expected, atol=1e-4)
    ridged = pooled_covariance(made, 0.5).numpy()
    np.testing.assert_allclose(ridged, expected + 0.5 * np.diag(expected).mean() * np.eye(5), atol=1e-4)


def test_one_sample_a_class_says_nothing_of_the_spread() -> None:
    alone = compute_class_statistics(torch.randn(3, 5), torch.arange(3), num_classes=3, rank=5)
    with pytest.raises(ValueError, match="two samples"):
        pooled_covariance([alone], 0.3)


def test_honest_clients_stay_and_an_outlier_counts_for_no_more_than_is_likely() -> None:
    honest = [compute_class_statistics(*samples(seed, 40), num_classes=3, rank=5) for seed in range(5, 11)]
    for before, after in zip(honest, bounded(honest), strict=True):
        torch.testing.assert_close(after.sums, before.sums, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.dense_scatter(), before.dense_scatter(), rtol=1e-4, atol=1e-4)
    features, labels = samples(11, 4000)
    outlier = compute_class_statistics(1e3 * features, labels, num_classes=3, rank=5)
    drawn = bounded([*honest, outlier])[-1]
    assert float(drawn.counts.sum()) == pytest.approx(120.0)
    spread = float(drawn.dense_scatter().trace()) / float(drawn.counts.sum())
    assert spread < 5 * float(pooled_covariance(honest, 0.0).trace())


@pytest.mark.parametrize("count", [8, 30, 60])
def test_a_large_client_among_small_ones_keeps_its_variance_and_takes_no_freedom_from_others(count: int) -> None:
    def client(seed: int, samples: int) -> ClassStatistics:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(samples) % 150
        return compute_class_statistics(torch.randn(samples, 5, generator=generator), labels, num_classes=150, rank=5)

    small, large = [client(seed, count) for seed in range(9)], client(9, 600)
    parts = bounded([*small, large])
    assert all(one.freedom >= 0 for one in parts)
    if parts[-1].freedom:
        variance = parts[-1].dense_scatter().trace() / parts[-1].freedom
        torch.testing.assert_close(variance, large.dense_scatter().trace() / large.freedom, rtol=1e-3, atol=0)


REQUEST = StatisticsRequest("a", 3, 4, Start(make_adapter(0)))


def own_statistics(rank: int = 4) -> ClassStatistics:
    features, labels = samples(4, 20, WIDTH)
    return compute_class_statistics(features, labels, num_classes=CLASSES, rank=rank)


def test_request_and_reply_survive_the_wire() -> None:
    request = StatisticsRequest.decode(REQUEST.encode(), make_adapter(1))
    assert (request.client_id, request.server_round, request.rank) == ("a", 3, 4)
    reply = StatisticsReply.decode(StatisticsReply("a", own_statistics()).encode(), request)
    for name, value in own_statistics().tensors().items():
        torch.testing.assert_close(reply.statistics.tensors()[name], value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"counts": torch.tensor([-1.0, 2.0, 3.0])}, "negative"),
        ({"counts": torch.tensor([0.5, 2.0, 3.0])}, "whole"),
        ({"counts": torch.zeros(3)}, "whole|without samples"),
        ({"counts": torch.tensor([0.0, 2.0, 3.0])}, "without samples"),
        ({"remainder": -torch.ones(WIDTH)}, "negative"),
        ({"sums": torch.full((CLASSES, WIDTH), float("nan"))}, "NaN"),
        ({"sums": torch.full((CLASSES, WIDTH), 1e9)}, "beyond"),
        ({"sums": torch.zeros(CLASSES, WIDTH + 1)}, "expected float"),
    ],
)
def test_statistics_that_cannot_be_are_refused(change: dict[str, torch.Tensor], said: str) -> None:
    content = StatisticsReply("a", own_statistics()).encode()
    content["arrays"] = encode_tensors({**own_statistics().tensors(), **change}, np.float32)
    with pytest.raises(ProtocolError, match=said):
        StatisticsReply.decode(content, REQUEST)


def test_more_rows_than_asked_for_and_another_client_are_refused() -> None:
    with pytest.raises(ProtocolError, match="rows"):
        StatisticsReply.decode(StatisticsReply("a", own_statistics(6)).encode(), REQUEST)
    with pytest.raises(ProtocolError, match="another client"):
        StatisticsReply.decode(StatisticsReply("b", own_statistics()).encode(), REQUEST)
    with pytest.raises(ProtocolError):
        StatisticsReply.decode(RecordDict(), REQUEST)


def test_a_scatter_of_no_rows_is_refused_and_many_samples_are_not() -> None:
    none = StatisticsReply("a", replace(own_statistics(), scatter=torch.zeros(0, WIDTH)))
    with pytest.raises(ProtocolError, match="0 rows, 1 to 4"):
        StatisticsReply.decode(none.encode(), REQUEST)
    one = own_statistics()
    many = replace(one, counts=1e5 * one.counts, sums=1e5 * one.sums, remainder=1e5 * one.remainder)
    back = StatisticsReply.decode(StatisticsReply("a", many).encode(), REQUEST)
    torch.testing.assert_close(back.statistics.sums, many.sums)
    with pytest.raises(ProtocolError, match="means beyond"):
        StatisticsReply.decode(StatisticsReply("a", replace(one, sums=one.sums + 1e7)).encode(), REQUEST)
