from __future__ import annotations

import torch

from models.adapters.adapter import combine
from models.adapters.adapter_sum import AdapterSum
from models.personalization.corrector import correct
from tests.builders import RANK, assert_same_products, make_adapter

TOTAL = combine([make_adapter(seed) for seed in range(3)], [1.0, 0.5, 0.25])
ALL, NONE = 1.0, 0.0


def test_what_is_kept_and_what_is_cut_make_the_whole() -> None:
    kept, cut = AdapterSum.of(TOTAL).split(RANK, 100)
    assert_same_products(combine([kept, cut], [1.0, 1.0]), TOTAL, 1e-4)
    assert_same_products(kept, TOTAL.truncated(RANK), 1e-5)


def test_a_share_of_nothing_is_plain_truncation() -> None:
    kept, _ = correct(AdapterSum.of(TOTAL), make_adapter(9), NONE, rank=RANK, residual_rank=4)
    assert_same_products(kept, TOTAL.truncated(RANK), 1e-4)


def test_a_share_of_all_offers_what_was_cut_again() -> None:
    kept, residual = correct(AdapterSum.of(TOTAL), None, ALL, rank=RANK, residual_rank=8)
    again, _ = correct(AdapterSum.of(kept), residual, ALL, rank=3 * RANK - 1, residual_rank=8)
    assert_same_products(again, TOTAL.truncated(3 * RANK - 1), 1e-4)


def test_error_feedback_loses_nothing_over_rounds() -> None:
    """The sum of what entered is the anchor plus what is residual, whatever the rank."""
    anchor, residual, entered = make_adapter(0, fresh=True), None, []
    for seed in range(1, 5):
        entered.append(make_adapter(seed))
        moved = combine([anchor, entered[-1]], [1.0, 1.0])
        anchor, residual = correct(AdapterSum.of(moved), residual, ALL, rank=RANK, residual_rank=100)
    assert residual is not None
    whole = combine([anchor, residual], [1.0, 1.0])
    assert_same_products(whole, combine(entered, [1.0] * len(entered)), 1e-3)


def test_residual_rank_is_bounded_and_zero_is_none() -> None:
    residual = correct(AdapterSum.of(TOTAL), None, ALL, rank=RANK, residual_rank=1)[1]
    assert residual is not None
    assert all(factors.rank == 1 for factors in residual.low_rank.values())
    assert correct(AdapterSum.of(TOTAL), None, ALL, rank=RANK, residual_rank=0)[1] is None


def test_the_head_is_never_cut() -> None:
    kept, residual = correct(AdapterSum.of(TOTAL), None, ALL, rank=RANK, residual_rank=4)
    assert torch.equal(kept.head, TOTAL.head)
    assert residual is not None
    assert float(residual.head.abs().sum()) == 0
