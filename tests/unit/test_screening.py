"""Updates that lie apart from the cohort's, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.adapters.adapter import Adapter, subtract
from models.lowrank.factors import Factors
from strategies.engine.history import History
from strategies.engine.screening import (
    TOO_FAR,
    TOO_LONG,
    Screen,
    distances_to_median,
    farthest,
    movement_gram,
    movement_norm,
    scaled_end,
    weights_to_median,
)
from strategies.methods.base.server import ClientUpdate, example_weights
from tests.builders import RANK, make_adapter, make_card, make_metrics, moved, products


def updates_of_lengths(*lengths: float) -> list[ClientUpdate]:
    """Return updates whose heads alone moved, each by a length of its own along one direction."""
    start = make_adapter(0)
    step = torch.zeros_like(start.head)
    step[0, 0] = 1.0
    ends = [replace(start, head=start.head + length * step) for length in lengths]
    cards = [make_card(f"client-{index}") for index in range(len(lengths))]
    return [
        ClientUpdate(card, start, end, make_metrics(num_examples=card.num_examples))
        for card, end in zip(cards, ends, strict=True)
    ]


def lengths_of(updates: list[ClientUpdate]) -> list[float]:
    return movement_gram(updates).diagonal().sqrt().tolist()


def test_a_long_movement_is_cut_to_the_bound_and_no_other_is_touched() -> None:
    updates = updates_of_lengths(1.0, 2.0, 3.0, 4.0, 300.0)
    screened = Screen(factor=2.0).apply(updates)
    bound = 3.0 + 2.0 * 1.4826 * 1.0
    assert lengths_of(screened.updates) == pytest.approx([1.0, 2.0, 3.0, 4.0, bound], rel=1e-5)
    assert screened.clipped == {"client-4": pytest.approx(bound / 300.0)}
    assert screened.left_out == {}
    assert screened.updates[:4] == updates[:4]


def test_equal_norms_leave_room_for_chance() -> None:
    screened = Screen(factor=5.0).apply(updates_of_lengths(1.0, 1.0, 1.0, 1.0, 1.9))
    assert screened.clipped == {}


def test_a_long_movement_is_left_out_with_its_reason_where_that_is_asked() -> None:
    screened = Screen(norm_rule="reject").apply(updates_of_lengths(1.0, 1.0, 1.1, 0.9, 100.0))
    assert screened.left_out == {"client-4": TOO_LONG}
    assert [one.card.client_id for one in screened.updates] == [f"client-{index}" for index in range(4)]


@pytest.mark.parametrize("lengths", [(1.0, 1.0, 100.0), (1.0,)])
def test_small_cohorts_are_not_judged_by_each_other(lengths: tuple[float, ...]) -> None:
    updates = updates_of_lengths(*lengths)
    assert Screen(norm_rule="reject", aggregation="trimmed").apply(updates).updates == updates


def test_half_a_cohort_does_not_raise_the_bound() -> None:
    screened = Screen().apply(updates_of_lengths(1.0, 1.1, 0.9, 1.0, 100.0, 101.0, 99.0, 100.0))
    assert sorted(screened.clipped) == [f"client-{index}" for index in range(4, 8)]
    assert max(lengths_of(screened.updates)) < 3.0


def test_most_of_a_cohort_does_not_raise_the_bound_that_former_rounds_set() -> None:
    updates = updates_of_lengths(1.0, 1.1, 0.9, 100.0, 101.0, 99.0, 100.0, 100.0)
    assert not Screen().apply(updates).clipped
    former = {f"other-{index}": 1.0 for index in range(6)} | {"client-7": 1.0}
    screened = Screen().apply(updates, former)
    assert sorted(screened.clipped) == [f"client-{index}" for index in range(3, 8)]
    assert screened.lengths["client-7"] == pytest.approx(100.0)


def test_a_small_cohort_is_judged_by_former_rounds() -> None:
    former = {f"other-{index}": 1.0 + 0.1 * index for index in range(4)}
    screened = Screen().apply(updates_of_lengths(1.0, 100.0), former)
    assert list(screened.clipped) == ["client-1"]


def test_movements_of_another_kind_say_nothing_of_how_long_one_should_be() -> None:
    history = History()
    history.note_movements({f"other-{index}": 1.0 for index in range(6)}, "head")
    assert history.lengths_of("core") == {}
    updates = updates_of_lengths(*[100.0] * 4)
    assert not Screen().apply(updates, history.lengths_of("core")).clipped
    assert len(Screen().apply(updates, history.lengths_of("head")).clipped) == 4
    history.note_movements({"other-0": 100.0}, "core")
    assert history.lengths_of("core") == {"other-0": 100.0}
    assert sorted(history.lengths_of("head")) == [f"other-{index}" for index in range(1, 6)]
    assert "other-0" not in history.without("other-0").trained


def test_off_and_mean_change_nothing() -> None:
    updates = updates_of_lengths(1.0, 1.0, 1.0, 1e6)
    assert Screen(norm_rule="off").apply(updates).updates == updates


def test_a_client_that_claims_more_samples_than_it_has_is_left_out() -> None:
    updates = updates_of_lengths(1.0, 1.0)
    liar = replace(updates[1], metrics=make_metrics(num_examples=10**9))
    screened = Screen().apply([updates[0], liar])
    assert screened.updates == updates[:1]
    assert "10" + "0" * 8 in screened.left_out["client-1"]


def test_no_client_counts_for_more_than_ten_times_the_median_of_all_claims(caplog: pytest.LogCaptureFixture) -> None:
    start = make_adapter(0)
    counts = [8, 10, 12, 10**18]
    cards = [make_card(f"client-{index}", num_examples=count) for index, count in enumerate(counts)]
    updates = [ClientUpdate(card, start, start, make_metrics(card.num_examples)) for card in cards]
    screened = Screen().apply(updates, claims=counts)
    assert [one.metrics.num_examples for one in screened.updates] == [8, 10, 12, 100]
    assert screened.updates[:3] == updates[:3]
    assert max(example_weights(screened.updates)) < 0.8
    assert "client 'client-3' says it has 1000000000000000000 samples and counts for 100" in caplog.text


def test_a_new_signature_of_another_number_of_samples_is_left_out() -> None:
    update = updates_of_lengths(1.0)[0]
    card = replace(update.card, num_examples=10**18)
    liar = replace(update, card=card, metrics=make_metrics(10**18))
    assert "its signature is of another number" in Screen().apply([liar]).left_out["client-0"]


@pytest.mark.parametrize("aggregation", ["median", "trimmed"])
def test_robust_rules_look_at_movements_and_not_at_claims(aggregation: str) -> None:
    updates = updates_of_lengths(1.0, 1.2, 1.1, 0.9, -100.0)
    card = make_card("client-4", num_examples=1000)
    updates[4] = replace(updates[4], card=card, metrics=make_metrics(num_examples=1000))
    screened = Screen(norm_rule="off", aggregation=aggregation).apply(updates)
    weights = dict(
        zip([one.card.client_id for one in screened.updates], example_weights(screened.updates), strict=True)
    )
    assert weights.get("client-4", 0.0) < 0.01


def test_movements_are_measured_in_product_space() -> None:
    start, end = make_adapter(0), make_adapter(1)
    update = ClientUpdate(make_card("client-0"), start, end, make_metrics())
    dense = subtract(end, start)
    expected = sum((one.B @ one.A).square().sum() for one in dense.low_rank.values()) + dense.head.square().sum()
    assert movement_gram([update]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_geometric_median_of_a_line_is_its_median() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [1000.0]], dtype=torch.float64)
    weights = weights_to_median(points @ points.mT, torch.ones(5, dtype=torch.float64))
    assert (weights @ points).item() == pytest.approx(2.0, abs=1e-3)


def test_the_geometric_median_of_a_square_with_outliers_stays_near_it() -> None:
    corners = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5], [500.0, 0.0], [500.0, 1.0]]
    points = torch.tensor(corners, dtype=torch.float64)
    shares, products = torch.ones(7, dtype=torch.float64), points @ points.mT
    assert (weights_to_median(products, shares) @ points - 0.5).norm() < 1.0
    assert farthest(distances_to_median(products, shares), 2) == {5, 6}


def test_trimming_leaves_out_the_planted_ones() -> None:
    screened = Screen(norm_rule="off", aggregation="trimmed", trim=0.4).apply(
        updates_of_lengths(1.0, -50.0, 1.1, 0.9, 50.0)
    )
    assert screened.left_out == {"client-1": TOO_FAR, "client-4": TOO_FAR}


def test_the_median_weighs_a_planted_client_down_in_every_average() -> None:
    screened = Screen(norm_rule="off", aggregation="median").apply(updates_of_lengths(1.0, 1.2, 1.1, 0.9, -100.0))
    weights = example_weights(screened.updates)
    assert sum(weights) == pytest.approx(1.0)
    average = sum(weight * length for weight, length in zip(weights, [1.0, 1.2, 1.1, 0.9, -100.0], strict=True))
    assert average == pytest.approx(1.0, abs=0.11)


def in_gauge(adapter: Adapter, gauge: torch.Tensor) -> Adapter:
    """Return the same products as B R^-1 and R A."""
    return adapter.map(lambda one: Factors(one.B @ torch.linalg.inv(gauge), gauge @ one.A))


def update_to(end: Adapter, name: str = "client-9") -> ClientUpdate:
    return ClientUpdate(make_card(name), make_adapter(0), end, make_metrics())


def nearby(seed: int, step: float) -> Adapter:
    noise, start = make_adapter(seed).tensors(), make_adapter(0).tensors()
    return Adapter.from_tensors({name: value + step * noise[name] for name, value in start.items()})


@settings(deadline=None, max_examples=40)
@given(
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    condition=st.sampled_from([1.0, 1e3, 1e6]),
    seed=st.integers(0, 100),
    step=st.sampled_from([0.0, 0.5, 30.0]),
)
def test_no_gauge_makes_a_cut_movement_longer_than_the_bound(
    scale: float, condition: float, seed: int, step: float
) -> None:
    left, right = torch.linalg.qr(torch.randn(2, RANK, RANK, generator=torch.Generator().manual_seed(seed)))[0]
    gauge = scale * left @ torch.diag(torch.logspace(0, -float(torch.tensor(condition).log10()), RANK)) @ right
    end = in_gauge(nearby(seed + 1, step), gauge)
    liar = update_to(replace(end, head=end.head + 5.0))
    honest = [update_to(nearby(200 + index, 0.01), f"client-{index}") for index in range(5)]
    screen = Screen()
    bound = screen._bound([movement_norm(one) for one in [*honest, liar]])
    screened = screen.apply([*honest, liar])
    assert screened.updates[:5] == honest
    assert list(screened.clipped) == ["client-9"]
    assert movement_norm(screened.updates[5]) <= bound * (1 + 1e-6)


def test_a_movement_is_cut_in_product_space_whatever_the_gauge() -> None:
    """A client that writes its product as (B / c, c A) is cut as one that does not."""
    honest = [update_to(nearby(200 + index, 0.01), f"client-{index}") for index in range(5)]
    end = nearby(7, 1.0)
    plain, scaled = (
        products(Screen().apply([*honest, update_to(one)]).updates[5].end)
        for one in (end, in_gauge(end, 1e4 * torch.eye(RANK)))
    )
    torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-4)


def test_a_movement_that_the_cut_to_the_rank_lengthens_is_cut_again() -> None:
    """Half-way to an end that is much larger than the start, the best adapter of the rank may leave the start out."""
    honest = [update_to(nearby(200 + index, 1.0), f"client-{index}") for index in range(5)]
    far = update_to(nearby(7, 30.0))
    bound = Screen()._bound([movement_norm(one) for one in [*honest, far]])
    once = replace(far, end=scaled_end(far.start, far.end, bound / movement_norm(far)))
    assert movement_norm(once) > 1.005 * bound
    assert movement_norm(Screen().apply([*honest, far]).updates[5]) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("fixed", ["lora_A", "lora_B"])
def test_a_factor_that_did_not_move_stays_exactly_when_a_movement_is_cut(fixed: str) -> None:
    start, far = make_adapter(0).tensors(), nearby(7, 10.0).tensors()
    end = Adapter.from_tensors({name: start[name] if fixed in name else one for name, one in far.items()})
    honest = [update_to(nearby(200 + index, 0.01), f"client-{index}") for index in range(5)]
    screened = Screen().apply([*honest, update_to(end)])
    cut, share = screened.updates[5].end.tensors(), screened.clipped["client-9"]
    for name, value in start.items():
        expected = value if fixed in name else torch.lerp(value, far[name], share)
        assert torch.equal(cut[name], expected)


def test_factors_that_cancel_do_not_hide_a_movement() -> None:
    """The inner products of huge factors are rounding; the movement is measured all the same."""
    start = make_adapter(0)
    huge = torch.tensor([[1.0, 0.0], [150.0, 1.0]]) @ torch.tensor([[1.0, 150.0], [0.0, 1.0]])
    end = in_gauge(nearby(3, 0.5), huge)
    dense = sum(
        (left.to(torch.float64).product() - start.low_rank[kind].to(torch.float64).product()).square().sum()
        for kind, left in end.low_rank.items()
    )
    expected = (dense + (end.head - start.head).double().square().sum()).sqrt()
    assert movement_norm(update_to(end)) == pytest.approx(float(expected), rel=1e-6)


def test_no_choice_of_factors_gives_a_movement_more_weight_in_an_average_of_factors() -> None:
    start = make_adapter(0, fresh=True)
    updates = [
        ClientUpdate(
            make_card(name), start, moved(start, name, 1), make_metrics(num_examples=make_card(name).num_examples)
        )
        for name in "abcdefgh"
    ]
    huge = updates[0].end.map(lambda one: Factors(1e4 * one.B, one.A / 1e4))
    screened = Screen().apply([replace(updates[0], end=huge), *updates[1:]])
    assert screened.left_out == {"a": TOO_LONG}
    assert not Screen().apply(updates).left_out


def test_a_core_that_is_turned_round_has_moved_twice_its_length() -> None:
    start = make_adapter(0)
    sent = {"fc": torch.eye(2)[None]}
    made = ClientUpdate(make_card("a"), start, start, make_metrics(), core={"fc": -sent["fc"]}, core_start=sent)
    assert movement_norm(made) == pytest.approx(2 * 2**0.5)
    assert movement_norm(replace(made, core=sent)) < 1e-9
