"""How HyperLoRA's anchor moves, against the dense sum."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from models.adapters.adapter import Adapter
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.anchor import gathered, moved_anchor
from tests.builders import RANK, make_adapter, make_card, make_metrics

ANCHOR, OTHER, ENDS = make_adapter(0), make_adapter(1), [make_adapter(seed) for seed in (2, 3, 4)]
COUNTS = [10, 30, 60]


def updates_from(starts: Sequence[Adapter]) -> list[ClientUpdate]:
    return [
        ClientUpdate(make_card(f"client-{place}"), start, end, make_metrics(num_examples=count))
        for place, (start, end, count) in enumerate(zip(starts, ENDS, COUNTS, strict=True))
    ]


@pytest.mark.parametrize("step", [1.0, 0.5])
@pytest.mark.parametrize("starts", [[ANCHOR] * 3, [ANCHOR, OTHER, OTHER], [make_adapter(0) for _ in range(3)]])
def test_the_anchor_moves_by_the_mean_movement_of_the_products(starts: list[Adapter], step: float) -> None:
    total = moved_anchor(ANCHOR, updates_from(starts), step)
    shares = [one / sum(COUNTS) for one in COUNTS]
    for kind, factors in ANCHOR.low_rank.items():
        expected = factors.product().double()
        for start, end, share in zip(starts, ENDS, shares, strict=True):
            expected += step * share * (end.low_rank[kind].product() - start.low_rank[kind].product()).double()
        U, S, Vh = torch.linalg.svd(expected)
        best = U[..., :RANK] * S[..., None, :RANK] @ Vh[..., :RANK, :]
        torch.testing.assert_close(total.truncated(RANK).low_rank[kind].product().double(), best, rtol=1e-4, atol=1e-4)
    moves = [share * (end.head - start.head) for start, end, share in zip(starts, ENDS, shares, strict=True)]
    torch.testing.assert_close(total.head(), ANCHOR.head + step * torch.stack(moves).sum(dim=0))


def test_what_all_started_from_is_one_term_and_cancels_where_the_step_is_whole() -> None:
    ends = [(end, 0.25) for end in ENDS]
    assert gathered([(ANCHOR, 1.0), *[(ANCHOR, -0.25)] * 4, *ends]) == ends
    half = gathered([(ANCHOR, 1.0), *[(ANCHOR, -0.125)] * 4, *ends])
    assert half == [(ANCHOR, 0.5), *ends]
    assert len(gathered([(ANCHOR, 1.0), (make_adapter(0), -1.0), *ends])) == 5
