"""Which starts are the same object, and which are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hyperlora.messages.plan import PLAIN_PLAN, LocalPlan, Start
from strategies.engine.requests import RequestMaker
from tests.builders import make_adapter, make_card

SHARED, OWN = make_adapter(0), make_adapter(1)
CARDS = {name: make_card(name, rank=rank) for name, rank in (("a", 0), ("b", 0), ("c", 1), ("d", 0))}
GIVEN = dict(zip(CARDS, (SHARED, SHARED, SHARED, OWN), strict=True))


def starts_of(wire: str, plans: dict[str, LocalPlan]) -> dict[str, Any]:
    method: Any = SimpleNamespace(
        starts=lambda state, cards: [GIVEN[card.client_id] for card in cards],
        plan=lambda state, card: plans.get(card.client_id, PLAIN_PLAN),
    )
    settings: Any = SimpleNamespace(wire=wire)
    registrar: Any = None
    return RequestMaker(method, registrar, settings).starts(None, CARDS)


@pytest.mark.parametrize("wire", ["float32", "int4"])
def test_clients_that_are_sent_the_same_adapter_alike_have_one_object(wire: str) -> None:
    starts = starts_of(wire, {})
    assert starts["a"].adapter is starts["b"].adapter
    assert starts["c"].adapter.rank == 1
    assert starts["d"].adapter is not starts["a"].adapter
    for name in ("a", "d"):
        expected = Start(GIVEN[name], wire=wire).fitted(0).adapter.tensors()
        assert all((one == expected[part]).all() for part, one in starts[name].adapter.tensors().items())


def test_each_keeps_its_own_plan_and_what_does_not_travel_is_not_shared() -> None:
    plan = LocalPlan(trains="B", down=("B", "head"), up=("B", "head"))
    starts = starts_of("int4", {"b": plan})
    assert starts["b"].plan is plan
    assert starts["a"].plan is PLAIN_PLAN
    assert starts["b"].adapter is not starts["a"].adapter
