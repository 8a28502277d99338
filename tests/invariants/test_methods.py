"""The matrix of invariants that every method must pass; a new method is in it as soon as it is in the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch

from hyperlora.config.methods import METHODS
from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan, Start, chosen
from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter, combine
from models.adapters.weight_gradient import gradient_shapes
from models.lowrank.factors import Factors
from strategies.engine.checkpoint import Checkpoint, CheckpointStore
from strategies.methods.base.server import ClientUpdate, Forgets, Method, with_clients
from strategies.methods.registry import build_method
from tests.builders import assert_same_products, make_adapter, make_card, make_metrics, moved

EXACT = ("flexlora", "hyperlora", "flora", "fedex-lora")
GLOBAL = (
    "fedit",
    *EXACT,
    "ffa-lora",
    "rolora",
    "lora-fair",
    "hetlora",
    "feddpa",
    "potara",
    "probe",
    "fedper",
    "ditto",
    "hilora",
)
INITIAL = make_adapter(0, fresh=True)
CARDS = {name: make_card(name, num_examples=10 * index + 10) for index, name in enumerate("abcd")}


def start_of(method: Method, state: object, card: ClientCard) -> Adapter:
    return method.starts(state, [card])[0]


def updates_of(method: Method, state: object, ends: dict[str, Adapter]) -> list[ClientUpdate]:
    """Replies that bring of each end only what the method's plan has sent back, in the order of the client-ids."""
    updates = []
    for name, end in sorted(ends.items()):
        start, plan = start_of(method, state, CARDS[name]), method.plan(state, CARDS[name])
        sent = Adapter.from_tensors({**start.tensors(), **chosen(end, plan.up)})
        metrics = make_metrics(CARDS[name].num_examples)
        updates.append(ClientUpdate(CARDS[name], start, sent, metrics, gradient_of(plan, start, name)))
    return updates


def gradient_of(plan: LocalPlan, start: Adapter, name: str) -> dict[str, torch.Tensor]:
    """What a client tells of the gradient of the weights, where the plan asks for it."""
    chance = torch.Generator().manual_seed(sum(map(ord, name)))
    shapes = gradient_shapes(start, plan.gradient_rank) if plan.gradient_rank else {}
    return {kind: torch.randn(shape, generator=chance) for kind, shape in shapes.items()}


def aggregated(method: Method, ends: dict[str, Adapter]) -> object:
    state = with_clients(method, method.init(INITIAL), CARDS)
    return method.aggregate(state, updates_of(method, state, ends))


def after_a_round_that_shrinks(method: Method, state: object) -> object:
    """Another round, in which products become half of what they were, by which HetLoRA's clients prune themselves."""
    if method.plan(state, CARDS["a"]).frame is not None:
        return state  # Fed-SB's clients train cores
    halved = {
        name: start_of(method, state, card).map(lambda one: Factors(0.5 * one.B, one.A)) for name, card in CARDS.items()
    }
    return method.aggregate(state, updates_of(method, state, halved))


def whole_start(method: Method, state: object, name: str) -> Adapter:
    return Start(start_of(method, state, CARDS[name]), method.plan(state, CARDS[name])).whole()


def trained_by(method: Method, end: Adapter) -> Adapter:
    """What a client of the method ends with that trains towards ``end`` from the fresh adapter."""
    state = with_clients(method, method.init(INITIAL), CARDS)
    return updates_of(method, state, {"a": end})[0].end


def method_of(name: str) -> Method:
    small = {"generator.hidden": 8, "generator.rank": 3, "pfedhn-lora.hidden": 8}
    return build_method(RunConfig.parse({"method": name, **small}))


def turned(adapter: Adapter) -> Adapter:
    """Another gauge of the same products: (A, B) -> (R A, B R^-1)."""
    gauge = torch.tensor([[2.0, 1.0], [0.5, 3.0]])
    return adapter.map(lambda one: Factors(B=one.B @ gauge.inverse(), A=gauge @ one.A))


@pytest.mark.parametrize("name", METHODS)
def test_before_round_one_everybody_gets_the_fresh_adapter(name: str) -> None:
    method = method_of(name)
    state = with_clients(method, method.init(INITIAL), CARDS)
    assert_same_products(whole_start(method, state, "a"), INITIAL)


@pytest.mark.parametrize("name", GLOBAL)
def test_equal_clients_give_back_their_own_product(name: str) -> None:
    method, end = method_of(name), moved(INITIAL, "x", 1)
    expected = trained_by(method, end)
    assert_same_products(method.anchor(aggregated(method, dict.fromkeys("abc", end))), expected, 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_clients_does_not_matter(name: str) -> None:
    method = method_of(name)
    ends = {one: moved(INITIAL, one, 1) for one in "abc"}
    forward, backward = aggregated(method, ends), aggregated(method, dict(reversed(ends.items())))
    for card in CARDS.values():
        assert_same_products(
            whole_start(method, forward, card.client_id), whole_start(method, backward, card.client_id), 1e-4
        )


@pytest.mark.parametrize("name", EXACT)
def test_a_change_of_gauge_moves_a_product_average_by_nothing(name: str) -> None:
    method = method_of(name)
    ends = {one: moved(INITIAL, one, 1) for one in "abc"}
    plain = aggregated(method, ends)
    gauged = aggregated(method, {**ends, "b": turned(ends["b"])})
    assert_same_products(method.anchor(gauged), method.anchor(plain), 1e-4)


def test_a_change_of_gauge_moves_fedit() -> None:
    method = method_of("fedit")
    ends = {one: moved(INITIAL, one, 1) for one in "abc"}
    plain, gauged = aggregated(method, ends), aggregated(method, {**ends, "b": turned(ends["b"])})
    with pytest.raises(AssertionError):
        assert_same_products(method.anchor(gauged), method.anchor(plain), 1e-2)


@pytest.mark.parametrize("name", GLOBAL)
def test_a_client_that_is_missing_leaves_the_weights_of_the_others_in_proportion(name: str) -> None:
    method = method_of(name)
    end, other = moved(INITIAL, "x", 1), moved(INITIAL, "y", 1)
    without_c = method.anchor(aggregated(method, {"a": end, "b": other}))
    twice = method.anchor(aggregated(method, {"b": other, "a": end}))
    assert_same_products(without_c, twice, 1e-4)
    share = CARDS["a"].num_examples / (CARDS["a"].num_examples + CARDS["b"].num_examples)
    torch.testing.assert_close(without_c.head, share * end.head + (1 - share) * other.head)


@pytest.mark.parametrize("name", METHODS)
def test_a_start_has_the_rank_and_shapes_of_the_fresh_adapter(name: str) -> None:
    method = method_of(name)
    state = aggregated(method, {one: moved(INITIAL, one, 1) for one in "abc"})
    for card in CARDS.values():
        start = method.start(state, card).tensors()
        assert {key: value.shape for key, value in start.items()} == {
            key: value.shape for key, value in INITIAL.tensors().items()
        }


@pytest.mark.parametrize("name", METHODS)
def test_no_function_changes_its_arguments(name: str) -> None:
    method = method_of(name)
    ends = {one: moved(INITIAL, one, 1) for one in "abc"}
    before = {one: {key: value.clone() for key, value in end.tensors().items()} for one, end in ends.items()}
    state = with_clients(method, method.init(INITIAL), CARDS)
    first = method.start(method.aggregate(state, updates_of(method, state, ends)), CARDS["a"])
    again = method.start(method.aggregate(state, updates_of(method, state, ends)), CARDS["a"])
    assert all(torch.equal(ends[one].tensors()[key], value) for one in before for key, value in before[one].items())
    assert all(torch.equal(value, again.tensors()[key]) for key, value in first.tensors().items())


def scaled_gauges(end: Adapter) -> dict[str, Adapter]:
    """Clients whose factors differ and whose products are multiples of one: their average has the rank of each."""
    return {"a": end, "b": turned(end.scaled(2.0)), "c": turned(turned(end.scaled(0.5)))}


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_give_the_average_product_where_the_rank_holds_it(name: str) -> None:
    method, ends = method_of(name), scaled_gauges(moved(INITIAL, "x", 1))
    expected = combine(list(ends.values()), [CARDS[one].num_examples / 60 for one in ends])
    assert_same_products(method.anchor(aggregated(method, ends)), expected, 1e-5)


def test_fedit_does_not() -> None:
    method, ends = method_of("fedit"), scaled_gauges(moved(INITIAL, "x", 1))
    expected = combine(list(ends.values()), [CARDS[one].num_examples / 60 for one in ends])
    with pytest.raises(AssertionError):
        assert_same_products(method.anchor(aggregated(method, ends)), expected, 1e-2)


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a state, however deep: keys, entries and fields."""
    if isinstance(value, str):
        yield value
    elif is_dataclass(value):
        for part in fields(value):
            yield from texts_in(getattr(value, part.name))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from (*texts_in(key), *texts_in(entry))
    elif isinstance(value, Sequence):
        for entry in value:
            yield from texts_in(entry)


@pytest.mark.parametrize("name", METHODS)
def test_a_client_that_is_forgotten_is_nowhere_in_the_state_and_the_method_goes_on(name: str) -> None:
    method = method_of(name)
    state = after_a_round_that_shrinks(method, aggregated(method, {one: moved(INITIAL, one, 1) for one in CARDS}))
    knows = "b" in texts_in(state)
    assert knows == isinstance(method, Forgets), "a method that holds something of single clients needs 'forget'"
    state = method.forget(state, "b") if isinstance(method, Forgets) else state
    assert "b" not in texts_in(state)
    others = {one: card for one, card in CARDS.items() if one != "b"}
    state = with_clients(method, state, others)
    assert "b" not in texts_in(state)
    assert all(bool(value.isfinite().all()) for value in start_of(method, state, CARDS["a"]).tensors().values())


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_gives_back_every_start(name: str, tmp_path: Path) -> None:
    method, store = method_of(name), CheckpointStore(tmp_path, keep=1)
    state = aggregated(method, {one: moved(INITIAL, one, 1) for one in "abc"})
    store.save(Checkpoint(1, state), method.state_classes)
    restored = store.latest(method.state_classes).state
    for one in CARDS:
        assert_same_products(whole_start(method, restored, one), whole_start(method, state, one), 0.0)
