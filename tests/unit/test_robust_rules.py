"""Flower's robust rules over products: what they do to a liar, whatever factors the clients write."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.robust_rules import RULES, RobustFlexLoRA, robust
from benchmarks.trials import SuiteError
from hyperlora.config.schema import RunConfig
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from strategies.methods.base.server import ClientUpdate
from strategies.methods.flexlora import FlexLoRA
from strategies.methods.registry import build_method
from tests.builders import make_adapter, make_card, make_metrics, products


def updates(ends: list[Adapter]) -> list[ClientUpdate]:
    cards = [make_card(f"client-{index}") for index in range(len(ends))]
    start = make_adapter(0)
    return [
        ClientUpdate(card, start, end, make_metrics(num_examples=card.num_examples))
        for card, end in zip(cards, ends, strict=True)
    ]


def cohort(bad: float) -> list[Adapter]:
    """Return eleven near one adapter, the last one scaled."""
    center = make_adapter(1)
    near = [center.scaled(1 + 0.01 * index) for index in range(10)]
    return [*near, center.scaled(bad)]


def distance(left: Adapter, right: Adapter) -> float:
    pairs = zip(products(left).values(), products(right).values(), strict=True)
    return float(sum((a - b).square().sum() for a, b in pairs)) ** 0.5


@pytest.mark.parametrize("rule", sorted(RULES))
def test_one_liar_moves_no_rule_beyond_the_honest_clients(rule: str) -> None:
    honest = cohort(1.0)[:10]
    spread = max(distance(honest[0], one) for one in honest)
    found = RobustFlexLoRA(RULES[rule]).aggregate(make_adapter(0), updates(cohort(-100.0)))
    assert distance(found, honest[5]) < spread
    plain = FlexLoRA().aggregate(make_adapter(0), updates(cohort(-100.0)))
    assert distance(plain, honest[5]) > 10 * spread


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_factors_that_clients_write_do_not_matter(rule: str) -> None:
    ends = cohort(3.0)
    turned = [
        end.map(lambda one, index=index: Factors(B=one.B * (index + 2.0), A=one.A / (index + 2.0)))
        for index, end in enumerate(ends)
    ]
    method = RobustFlexLoRA(RULES[rule])
    one, other = (method.aggregate(make_adapter(0), updates(each)) for each in (ends, turned))
    for kind, product in products(one).items():
        torch.testing.assert_close(product, products(other)[kind])


def test_multikrum_leaves_out_the_farthest_and_the_trimmed_mean_the_ends() -> None:
    models = [[np.full((2, 3), value)] for value in (0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 90.0)]
    assert RULES["multikrum"](models)[0] == pytest.approx(np.full((2, 3), 2.9))  # of 1, 2, 3, 4 and 4.5
    assert RULES["trimmed-mean"](models)[0] == pytest.approx(np.full((2, 3), 3.0))  # of 2, 3 and 4
    assert RULES["bulyan"](models)[0] == pytest.approx(np.full((2, 3), 3.0))


def test_the_rule_is_there_while_its_context_lasts() -> None:
    config = RunConfig.parse({"method": "flexlora"})
    with robust("bulyan"):
        assert isinstance(build_method(config), RobustFlexLoRA)
    assert not isinstance(build_method(config), RobustFlexLoRA)
    with robust(""):
        assert not isinstance(build_method(config), RobustFlexLoRA)
    with pytest.raises(SuiteError, match="no reference 'bulian'"), robust("bulian"):
        pass
