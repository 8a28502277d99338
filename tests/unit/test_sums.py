"""What a server learns from sums over clients: averages in product space, clusters, class statistics of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.head_generator import HeadGenerator
from models.sums.clusters import Clusters, grow_clusters, membership, moments, spread
from models.sums.group_statistics import GroupStatistics, Spread, contribution, deviations
from models.sums.local_head import PublicHeads


@dataclass
class SumsOf:
    """Sums over clients whose vectors are at hand."""

    vectors: Tensor

    def moments(self) -> Tensor:
        return torch.stack([moments(one) for one in self.vectors]).sum(dim=0)

    def spread(self, clusters: Clusters, directions: Tensor) -> Tensor:
        return torch.stack([spread(clusters, directions, one) for one in self.vectors]).sum(dim=0)

    def members(self, clusters: Clusters) -> Tensor:
        return torch.stack([membership(clusters, one) for one in self.vectors]).sum(dim=0)


def planted(sizes: Sequence[int], length: int = 20) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(1)
    centers = 3.0 * torch.randn(len(sizes), length, generator=generator)
    label = [index for index, size in enumerate(sizes) for _ in range(size)]
    return centers[label] + torch.randn(len(label), length, generator=generator), label


def test_clusters_from_sums_are_the_planted_ones() -> None:
    vectors, label = planted([9, 7, 12, 6])
    found = grow_clusters(SumsOf(vectors), least=5, most=4)
    mine = [found.nearest(one) for one in vectors]
    assert len(set(zip(mine, label, strict=True))) == 4
    assert sorted(found.counts.tolist()) == [6, 7, 9, 12]
    assert torch.bincount(torch.tensor(mine)).tolist() == found.counts.tolist()


@pytest.mark.parametrize("least", [3, 5, 8])
def test_no_cluster_is_too_small(least: int) -> None:
    vectors, _ = planted([2, 3, 11, 4, 9])
    found = grow_clusters(SumsOf(vectors), least=least, most=16)
    assert bool((found.counts >= least).all())
    assert int(found.counts.sum()) == len(vectors)


@pytest.mark.parametrize(("least", "most"), [(6, 4), (3, 1)])
def test_a_cluster_that_cannot_be_split_costs_no_further_sum(least: int, most: int) -> None:
    class CountOnly(SumsOf):
        def spread(self, clusters: Clusters, directions: Tensor) -> Tensor:
            raise AssertionError("nobody needs this sum")

    found = grow_clusters(CountOnly(planted([4, 5])[0]), least=least, most=most)
    assert found.counts.tolist() == [9]


def test_too_few_clients_have_no_sum() -> None:
    with pytest.raises(ValueError, match="sums over fewer than 5 clients would tell of single ones"):
        grow_clusters(SumsOf(planted([4])[0]), least=5, most=4)


def clients(count: int, shared: float, single: float, *, samples: int = 40) -> list[ClassStatistics]:
    """Return statistics of clients whose class means differ by what they share and by class; unit variance within."""
    generator = torch.Generator().manual_seed(2)
    told = []
    for _ in range(count):
        labels = torch.randint(0, 3, (samples,), generator=generator)
        offset = shared**0.5 * torch.randn(1, 8, generator=generator)
        means = 2.0 * torch.eye(3, 8) + offset + single**0.5 * torch.randn(3, 8, generator=generator)
        features = means[labels] + torch.randn(samples, 8, generator=generator)
        told.append(compute_class_statistics(features, labels, num_classes=3, rank=8))
    return told


def one_group(told: Sequence[ClassStatistics]) -> PublicHeads:
    parts = [contribution(one, 0, 1) for one in told]
    sums = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}
    clusters = Clusters(torch.zeros(4), torch.ones(4), torch.zeros(1, 4), torch.tensor([float(len(told))]))
    return PublicHeads.of(clusters, GroupStatistics.of(sums))


def test_a_group_has_the_pooled_covariance_of_its_clients() -> None:
    told = clients(30, 0.5, 0.5)
    group = one_group(told).statistics.groups[0]
    pooled = torch.stack([one.dense_scatter() for one in told]).sum(dim=0) / sum(one.freedom for one in told)
    torch.testing.assert_close(group.dense_scatter() / group.freedom, pooled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("shared", "single"), [(0.0, 0.3), (0.5, 0.1), (0.0, 0.0)])
def test_variances_between_clients_follow_from_sums(shared: float, single: float) -> None:
    told = clients(200, shared, single)
    public = one_group(told)
    at = torch.zeros(1)
    sums = torch.stack([deviations(public.generator, one, public.statistics.groups[0], at) for one in told]).sum(dim=0)
    found = Spread.of(sums)
    assert abs(found.client - shared) < 0.08
    assert abs(found.single - single) < 0.08


def test_the_concentration_of_class_frequencies_follows_from_sums() -> None:
    torch.manual_seed(0)
    drawn = torch.distributions.Dirichlet(0.5 * torch.tensor([3.0, 2.0, 1.0])).sample((400,))
    counts = torch.stack([torch.multinomial(one, 50, replacement=True).bincount(minlength=3) for one in drawn]).float()
    parts = [
        contribution(ClassStatistics(one, torch.zeros(3, 2), torch.zeros(0, 2), torch.zeros(2)), 0, 1) for one in counts
    ]
    sums = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}
    assert float(GroupStatistics.of(sums).pseudo_counts().sum()) == pytest.approx(3.0, rel=0.2)


def test_a_head_from_groups_of_one_client_is_what_a_newcomer_is_served_in_the_open() -> None:
    told = clients(6, 0.2, 0.2)
    parts = [contribution(one, index, 6) for index, one in enumerate(told)]
    sums = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}
    points = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    clusters = Clusters(torch.zeros(4), torch.ones(4), points, torch.ones(6))
    public = PublicHeads.of(clusters, GroupStatistics.of(sums))
    opened = HeadGenerator.fit({f"group-{i}": one for i, one in enumerate(told)}, clusters.between())
    mine, own = points[0] + 0.1, clients(7, 0.2, 0.2)[-1]
    distances = clusters.distances(mine).double()
    means = opened.expected_means(distances, own)
    expected = opened.whitening.head(means, opened.within_class.precision(distances, own))
    torch.testing.assert_close(public.head(mine, own), expected, rtol=1e-3, atol=1e-3)


def groups_of(told: Sequence[ClassStatistics], points: Tensor) -> PublicHeads:
    """Return what is public of groups of one client each, at ``points``."""
    parts = [contribution(one, index, len(told)) for index, one in enumerate(told)]
    sums = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}
    count, width = points.shape
    clusters = Clusters(torch.zeros(width), torch.ones(width), points, torch.ones(count))
    return PublicHeads.of(clusters, GroupStatistics.of(sums))


def test_a_group_that_cannot_be_costs_the_others_nothing() -> None:
    told, points = clients(6, 0.2, 0.2), torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    told[0] = replace(told[0], scatter=3.5 * told[0].scatter, remainder=3.5**2 * told[0].remainder)
    public, without = groups_of(told, points), groups_of(told[1:], points[1:])
    assert public.generator.disbelieved == {"group-1"}
    mine, own = points[2] + 0.1, clients(7, 0.2, 0.2)[-1]
    torch.testing.assert_close(public.head(mine, own), without.head(mine, own), rtol=1e-3, atol=1e-3)
    assert len(deviations(public.generator, own, public.statistics.groups[2], public.distances(mine))) == 4


def test_a_client_of_one_sample_says_nothing_of_how_often_two_agree() -> None:
    counts = [torch.tensor([50.0, 0.0]), torch.tensor([0.0, 1.0])]
    parts = [
        contribution(ClassStatistics(one, torch.zeros(2, 2), torch.zeros(0, 2), torch.zeros(2)), 0, 1) for one in counts
    ]
    sums = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}
    assert GroupStatistics.of(sums).agreeing == 1.0


def test_a_client_with_classes_of_its_own_moves_its_head_more_where_clients_differ_more() -> None:
    told = clients(30, 0.0, 0.3)
    public, own, at = one_group(told), clients(31, 0.0, 0.3)[-1], torch.zeros(4)
    alike, unlike = (replace(public, spread=Spread(0.0, one)).head(at, own) for one in (0.01, 1.0))
    base = public.head(at, None)
    assert (alike - base).norm() < (unlike - base).norm()
