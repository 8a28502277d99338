"""FedIT's aggregation bias, for any shape, rank, number of clients and weights."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from strategies.methods.base.server import ClientUpdate
from strategies.methods.fedit import FedIT
from tests.builders import make_card, make_metrics


@st.composite
def rounds(draw_from: st.DrawFn) -> list[ClientUpdate]:
    """The replies of one to five clients of any numbers of examples; rank and sides of a module are drawn apart."""
    blocks, rank, m, n = (draw_from(st.integers(1, most)) for most in (3, 5, 8, 8))
    counts = draw_from(st.lists(st.integers(1, 500), min_size=1, max_size=5))
    chance = torch.Generator().manual_seed(draw_from(st.integers(0, 10_000)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    ends = [Adapter({"x": Factors(normal(blocks, m, rank), normal(blocks, rank, n))}, normal(3, 4)) for _ in counts]
    cards = [make_card(f"client-{index}", num_examples=count) for index, count in enumerate(counts)]
    return [
        ClientUpdate(card, end, end, make_metrics(card.num_examples)) for card, end in zip(cards, ends, strict=True)
    ]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(rounds())
def test_fedit_misses_the_average_product_by_the_covariance_of_the_factors(updates: list[ClientUpdate]) -> None:
    """sum w_i B_i A_i - B A = sum w_i (B_i - B)(A_i - A), with B = sum w_i B_i, A = sum w_i A_i and w_i = n_i / n."""
    average = FedIT().aggregate(updates[0].start, updates).low_rank["x"]
    total = sum(update.card.num_examples for update in updates)
    weights = [update.card.num_examples / total for update in updates]
    ends = [update.end.low_rank["x"] for update in updates]
    mean_product = sum(w * one.B @ one.A for w, one in zip(weights, ends, strict=True))
    covariance = sum(w * (one.B - average.B) @ (one.A - average.A) for w, one in zip(weights, ends, strict=True))
    torch.testing.assert_close(mean_product - average.product(), covariance, rtol=1e-9, atol=1e-9)
    assert len(updates) == 1 or covariance.norm() > 1e-3
