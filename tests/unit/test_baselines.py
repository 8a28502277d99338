"""Each rival against numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.plan import LocalPlan, Start, part_of
from models.adapters.adapter import Adapter, combine
from models.adapters.weight_gradient import gradient_shapes
from models.lowrank.factors import Factors
from strategies.methods.base.server import ClientUpdate, Method
from strategies.methods.fed_sb.server import equal_rank
from strategies.methods.lora_fair.server import corrected, corrected_by_descent
from strategies.methods.pfedhn_lora.server import pull
from strategies.methods.registry import build_method
from tests.builders import make_adapter, make_card, make_metrics, moved, same_products

INITIAL = make_adapter(0, fresh=True)
CARD, NEWCOMER = make_card("a"), make_card("new", trains=False)


def scalar(b: float, a: float, head: float = 0.0) -> Adapter:
    """An adapter of one module 1 x 1 of rank 1 and a head of two numbers."""
    left, right = torch.tensor([[[float(b)]]]), torch.tensor([[[float(a)]]])
    return Adapter({"w": Factors(B=left, A=right)}, torch.tensor([[head, head]]))


def update(end: Adapter, start: Adapter, count: int = 10, core: dict[str, torch.Tensor] | None = None) -> ClientUpdate:
    return ClientUpdate(CARD, start, end, make_metrics(count), core=core or {})


def factors(adapter: Adapter) -> tuple[float, float]:
    return float(adapter.low_rank["w"].B), float(adapter.low_rank["w"].A)


def baseline(name: str, **values: str | float) -> Method:
    return build_method(RunConfig.parse({"method": name, **values}))


def test_fedit_averages_factors_by_numbers_of_samples() -> None:
    method, start = baseline("fedit"), scalar(0, 1)
    state = method.aggregate(method.init(start), [update(scalar(1, 1), start, 30), update(scalar(3, 5), start, 10)])
    assert factors(state) == (1.5, 2.0)


def test_ffa_lora_exchanges_b_and_the_head_only() -> None:
    plan = baseline("ffa-lora").plan(INITIAL, CARD)
    assert (plan.trains, {*plan.down}, {*plan.up}) == ("B", {"B", "head"}, {"B", "head"})


def test_the_probe_averages_the_head_alone_and_leaves_the_backbone_as_it_is() -> None:
    method, start = baseline("probe"), scalar(0, 2)
    plan = method.plan(start, CARD)
    assert (plan.trains, *plan.down, *plan.up) == ("head", "head", "head")
    state = method.aggregate(start, [update(scalar(0, 2, head=1), start, 30), update(scalar(0, 2, head=5), start, 10)])
    assert factors(state) == (0.0, 2.0)
    assert state.head.tolist() == [[2.0, 2.0]]


def test_rolora_trains_b_and_a_in_turn_and_averages_the_product_exactly() -> None:
    method, start = baseline("rolora"), scalar(0, 2)
    state = method.init(start)
    assert method.plan(state, CARD).trains == "B"
    state = method.aggregate(state, [update(scalar(1, 2), start), update(scalar(3, 2), start)])
    assert factors(state.adapter) == (2.0, 2.0)
    assert method.plan(state, CARD).trains == "A"
    state = method.aggregate(state, [update(scalar(2, 5), start), update(scalar(2, 7), start)])
    assert factors(state.adapter) == (2.0, 6.0)
    assert method.plan(state, CARD).trains == "B"


def test_fedsa_lora_shares_a_alone_among_clients_that_train() -> None:
    method = baseline("fedsa-lora")
    plan = method.plan(method.init(INITIAL), CARD)
    assert (tuple(plan.down), tuple(plan.up), plan.personal) == (("A",), ("A", "head"), True)
    start = scalar(0, 1)
    state = method.aggregate(
        method.init(start), [update(scalar(0, 2, 1), start, 30), update(scalar(0, 6, 5), start, 10)]
    )
    assert factors(method.start(state, CARD)) == (0.0, 3.0)
    assert method.start(state, CARD).head.tolist() == [[0.0, 0.0]]


def test_fedsa_loras_newcomer_gets_the_average_head_of_the_last_cohort() -> None:
    method, start = baseline("fedsa-lora"), scalar(0, 1)
    state = method.aggregate(
        method.init(start), [update(scalar(0, 2, 1), start, 30), update(scalar(0, 6, 5), start, 10)]
    )
    assert tuple(method.plan(state, NEWCOMER).down) == ("A", "head")
    assert factors(method.start(state, NEWCOMER)) == (0.0, 3.0)
    assert method.start(state, NEWCOMER).head.tolist() == [[2.0, 2.0]]


def test_a_newcomer_of_local_gets_the_average_head_of_all_that_have_trained() -> None:
    method, start = baseline("local"), scalar(0, 1)
    first = ClientUpdate(make_card("a"), start, scalar(7, 7, 1), make_metrics(30))
    second = ClientUpdate(make_card("b"), start, scalar(9, 9, 5), make_metrics(10))
    state = method.aggregate(method.aggregate(method.init(start), [first]), [second])
    made = method.start(state, NEWCOMER)
    assert (factors(made), made.head.tolist()) == ((0.0, 1.0), [[2.0, 2.0]])
    assert factors(method.start(state, make_card("a"))) == (7.0, 7.0)
    untouched = method.start(state, make_card("c"))
    assert (factors(untouched), untouched.head.tolist()) == ((0.0, 1.0), [[0.0, 0.0]])


def test_flora_merges_the_stack_and_starts_afresh_with_another_a() -> None:
    method, start = baseline("flora"), scalar(0, 1)
    state = method.aggregate(method.init(start), [update(scalar(1, 2), start), update(scalar(3, 4), start)])
    assert float(state.base.low_rank["w"].product()) == pytest.approx(7.0)
    first = factors(method.start(state, CARD))
    assert first[0] == 0.0
    again = method.aggregate(state, [update(scalar(2, 1), start), update(scalar(4, 1), start)])
    assert float(again.base.low_rank["w"].product()) == pytest.approx(10.0)
    assert factors(method.start(again, CARD))[1] != first[1]


def test_fedex_lora_adds_what_averaging_left_out_round_after_round() -> None:
    method, start = baseline("fedex-lora"), scalar(0, 1)
    state = method.aggregate(method.init(start), [update(scalar(1, 1), start), update(scalar(3, 3), start)])
    assert factors(state.adapter) == (2.0, 2.0)
    assert float(state.base.low_rank["w"].product()) == pytest.approx(1.0)
    state = method.aggregate(state, [update(scalar(0, 2), start), update(scalar(2, 0), start)])
    total = Start(method.start(state, CARD), method.plan(state, CARD)).whole()
    assert float(total.low_rank["w"].product()) == pytest.approx(1.0)


def test_lora_fair_in_closed_form_moves_b_to_the_average_product() -> None:
    average, exact = scalar(2, 2), combine([scalar(1, 1), scalar(3, 3)], [0.5, 0.5])
    free = corrected(average.low_rank["w"], exact.low_rank["w"], penalty=0.0)
    assert float(free) == pytest.approx(2.5)
    assert float(corrected(average.low_rank["w"], exact.low_rank["w"], penalty=4.0)) == pytest.approx(2.25)


def test_lora_fair_solves_the_penalised_least_squares_problem_of_every_module() -> None:
    ends = [moved(INITIAL, one, 1) for one in "ab"]
    exact, penalty = combine(ends, [0.5, 0.5]), 0.3
    average = Adapter.from_tensors({k: (v + ends[1].tensors()[k]) / 2 for k, v in ends[0].tensors().items()})
    for kind, one in average.low_rank.items():
        got = corrected(one, exact.low_rank[kind], penalty) - one.B
        residual = exact.low_rank[kind].product() - one.product()
        slope = 2 * ((got @ one.A - residual) @ one.A.mT + penalty * got)
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-4, rtol=0)


def test_lora_fair_by_descent_comes_closer_in_angle() -> None:
    ends = [moved(INITIAL, one, 1) for one in "ab"]
    exact = combine(ends, [0.5, 0.5])
    average = Adapter.from_tensors({k: (v + ends[1].tensors()[k]) / 2 for k, v in ends[0].tensors().items()})
    for kind, one in average.low_rank.items():
        target = exact.low_rank[kind].product().flatten(1)
        now = (corrected_by_descent(one, exact.low_rank[kind], 0.01) @ one.A).flatten(1)
        before, after = (torch.cosine_similarity(x, target) for x in (one.product().flatten(1), now))
        assert bool((after > before).all())


def test_fed_sb_asks_for_the_gradient_once_and_then_averages_cores() -> None:
    method = baseline("fed-sb", **{"fed-sb.rank": 5})
    state = method.init(INITIAL)
    plan = method.plan(state, CARD)
    assert (plan.trains, tuple(plan.up), plan.gradient_rank) == ("head", ("head",), 5)
    gradient = {name: torch.ones(shape) for name, shape in gradient_shapes(INITIAL, plan.gradient_rank).items()}
    told = [replace(update(one, INITIAL), gradient=gradient) for one in (moved(INITIAL, "a", 1), INITIAL)]
    state = method.aggregate(state, told)
    plan = method.plan(state, CARD)
    assert (plan.trains, tuple(plan.up), plan.frame_rank) == ("core", ("head",), 5)
    start = method.start(state, CARD)
    cores = [{kind: factor * one for kind, one in state.core.items()} for factor in (1.0, 3.0)]
    later = method.aggregate(state, [update(start, start, core=core) for core in cores])
    torch.testing.assert_close(later.core, {kind: 2 * one for kind, one in state.core.items()})


def test_fed_sbs_cores_have_as_many_numbers_as_the_factors_that_they_stand_for() -> None:
    rank = equal_rank(INITIAL)
    numbers = sum(factors.B.numel() + factors.A.numel() for factors in INITIAL.low_rank.values())
    modules = sum(len(factors.B) for factors in INITIAL.low_rank.values())
    smallest = min(min(factors.shape[-2:]) for factors in INITIAL.low_rank.values())
    assert rank == smallest or rank**2 * modules <= numbers < (rank + 1) ** 2 * modules


def test_hetlora_weighs_by_the_norms_of_the_products_and_cuts_to_a_clients_rank() -> None:
    method, start = baseline("hetlora"), scalar(0, 1)
    state = method.aggregate(method.init(start), [update(scalar(1, 1), start, 90), update(scalar(3, 1), start, 10)])
    assert factors(state.adapter) == (pytest.approx(0.25 * 1 + 0.75 * 3), 1.0)
    small = method.start(method.init(make_adapter(3)), make_card("a", rank=1))
    assert small.rank == 1
    torch.testing.assert_close(small.low_rank["mlp.fc1"].B, make_adapter(3).low_rank["mlp.fc1"].B[..., :1])


def test_pfedhn_moves_what_it_makes_towards_what_the_client_made_of_it() -> None:
    method = baseline("pfedhn-lora")
    cards = {name: make_card(name) for name in "abcd"}
    state = method.register(method.init(INITIAL), cards)
    start = method.start(state, cards["a"])
    end = moved(start, "a", 1)
    after = method.start(method.aggregate(state, [ClientUpdate(cards["a"], start, end, make_metrics())]), cards["a"])
    agreement = sum(
        float(((after.tensors()[k] - v) * (end.tensors()[k] - v)).sum()) for k, v in start.tensors().items()
    )
    assert agreement > 0


def test_pfedhns_rule_has_the_clients_movement_as_its_gradient() -> None:
    start, end = make_adapter(1), make_adapter(2)
    made = Adapter.from_tensors({k: v.clone().requires_grad_() for k, v in start.tensors().items()})
    torch.autograd.backward(pull(made, update(end, start)))
    for name, tensor in made.tensors().items():
        torch.testing.assert_close(tensor.grad, start.tensors()[name] - end.tensors()[name])


@pytest.mark.parametrize("name", ["fedit", "fed-sb", "pfedhn-lora"])
def test_methods_that_need_one_rank_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' needs one rank for all clients"):
        RunConfig.parse({"method": name, "lora.ranks": "2,4"})


def test_ranks_above_the_models_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must lie between 1 and lora\.rank 4"):
        RunConfig.parse({"method": "flexlora", "lora.ranks": "2,8"})


def test_a_base_is_part_of_the_whole_adapter() -> None:
    total = Start(scalar(1, 2), LocalPlan(base=scalar(3, 1))).whole()
    assert float(total.low_rank["w"].product()) == 5.0
    assert not same_products(Start(make_adapter(1), LocalPlan(base=make_adapter(2))).whole(), make_adapter(1))


def test_parts_are_recognised_by_the_end_of_their_name() -> None:
    assert [part_of(name) for name in ("head", "attn.qkv.lora_A", "a.lora_B.lora_B")] == ["head", "A", "B"]
