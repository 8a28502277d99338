"""Who is admitted: by node key where there is an allow-list, and one node per client."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from hyperlora.messages.signature import SignatureReply
from hyperlora.storage.allow_list import AllowList, Permission, one_line_key
from strategies.federation.registrar import Registrar
from strategies.federation.roster import Backoff, Roster
from tests.builders import CLASSES, SIGNATURE_SIZE, make_card
from tests.sites import SiteGrid

KEYS = [ec.generate_private_key(ec.SECP384R1()).public_key() for _ in range(4)]
PEMS = [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in KEYS]
LATER = datetime.now(UTC) + timedelta(days=1)


def claiming_app() -> ClientApp:
    """A ClientApp that says it hosts the client that its node config names."""
    app = ClientApp()

    @app.query("signature")
    def signature(message: Message, context: Any) -> Message:
        return Message(SignatureReply([make_card(context.node_config["client-id"])], {}).encode(), reply_to=message)

    return app


def grid_of(*claims: str, keys: list[bytes] = PEMS) -> SiteGrid:
    grid = SiteGrid({}, [{"client-id": name} for name in claims], keys)
    grid._client_app = claiming_app()
    return grid


def registrar(allowed: AllowList | None = None) -> Registrar:
    return Registrar("f", SIGNATURE_SIZE, CLASSES, roster=Roster(allowed))


def allow(**valid_until: datetime) -> AllowList:
    return AllowList({name: Permission(one_line_key(KEYS[int(name[-1])]), end) for name, end in valid_until.items()})


class UnpackingGrid(SiteGrid):
    """A SiteGrid whose node 2 cannot load the app the first time."""

    def _answer(self, message: Message) -> Message:
        if message.metadata.dst_node_id == 2 and self.asked(2) == 1:
            reason = "An exception was raised when attempting to load `ClientApp`"
            return Message(Error(code=ErrorCode.LOAD_CLIENT_APP_EXCEPTION, reason=reason), reply_to=message)
        return super()._answer(message)


def test_a_node_that_could_not_load_the_app_is_asked_again() -> None:
    own, grid = registrar(), UnpackingGrid({}, [{"client-id": "a0"}, {"client-id": "a1"}], PEMS)
    grid._client_app = claiming_app()
    own.refresh(grid, 5.0)
    assert "attempting to load" in own.roster.left_out["node 2"]
    own.wait_for(grid, wanted=2, join_timeout=30.0, reply_timeout=5.0)
    assert (list(own.roster.reachable()), own.roster.left_out) == (["a0", "a1"], {})


def test_a_node_that_claims_anothers_client_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    own = registrar(allow(a0=LATER, a1=LATER, a2=LATER))
    with caplog.at_level(logging.WARNING):
        own.refresh(grid_of("a0", "a0", "a2"), 5.0)
    assert own.roster.nodes == {"a0": 1, "a2": 3}
    assert "node 2 is left out: it claims client 'a0', but it holds the key of client 'a1'" in caplog.text


def test_the_impostor_is_left_out_even_if_it_comes_first() -> None:
    own, grid = registrar(allow(a0=LATER, a1=LATER)), grid_of("a0", "a0")
    grid.present = {2}
    own.refresh(grid, 5.0)
    grid.present = {1, 2}
    own.refresh(grid, 5.0)
    assert own.roster.nodes == {"a0": 1}


def test_expired_and_unlisted_clients_are_left_out_with_the_reason() -> None:
    own = registrar(allow(a0=LATER, a1=datetime(2026, 1, 1, tzinfo=UTC)))
    own.refresh(grid_of("a0", "a1", "a2"), 5.0)
    assert own.roster.nodes == {"a0": 1}
    assert own.roster.left_out == {
        "node 2": "the permission of client 'a1' expired at 2026-01-01T00:00:00+00:00",
        "node 3": "it claims client 'a2', which is not on the allow-list",
    }


def test_a_grid_that_knows_no_keys_lets_nobody_in() -> None:
    own = registrar(allow(a0=LATER))
    own.refresh(grid_of("a0", keys=[]), 5.0)
    assert own.roster.nodes == {}


def test_without_a_list_the_first_node_has_the_client_until_it_leaves() -> None:
    own, grid = registrar(), grid_of("a0", "a0")
    own.refresh(grid, 5.0)
    assert own.roster.nodes == {"a0": 1}
    assert own.roster.left_out == {"node 2": "it claims client 'a0', which node 1 is"}
    grid.present = {2}
    assert own.refresh(grid, 5.0)
    assert own.roster.nodes == {"a0": 2}


def test_a_silent_node_rests_twice_as_long_each_time_and_any_answer_makes_its_rest_short_again() -> None:
    backoff, asked = Backoff(), []
    for clock in range(1, 31):
        backoff.tick()
        if not backoff.rests(7):
            asked.append(clock)
            backoff.note([7], [7] if clock == 20 else [])
    assert asked == [1, 3, 6, 11, 20, 21, 23, 26]


def test_who_rests_is_asked_where_too_few_are_left_unless_it_fell_silent_in_this_round() -> None:
    roster = Roster(least=2)
    roster.see([1, 2, 3], {})
    for node_id, name in enumerate("abc", start=1):
        roster.enter(node_id, SignatureReply([replace(make_card(name), trains=name != "c")], {}))
    roster.backoff.tick()
    roster.note([1, 2, 3], [2, 3])
    assert list(roster.reachable()) == ["b", "c"]
    roster.backoff.tick()
    assert roster.backoff.rests(1)
    assert list(roster.reachable()) == ["a", "b", "c"]
    roster.least = 1
    assert list(roster.reachable()) == ["b", "c"]
    roster.note([3], [])
    assert list(roster.reachable()) == ["b"]
    roster.backoff.tick()
    assert list(roster.reachable()) == ["a", "b", "c"]


def test_a_new_node_that_says_nothing_is_asked_less_and_less_until_it_answers() -> None:
    own, grid = registrar(), grid_of("a0", "a1")
    grid.silent = frozenset({2})
    for _ in range(10):
        own.refresh(grid, 5.0)
    assert (grid.asked(1), grid.asked(2)) == (1, 3)
    assert own.roster.left_out == {"node 2": "it sent no signature: no reply within the time limit"}
    grid.silent = frozenset()
    assert own.refresh(grid, 5.0)
    assert (list(own.roster.reachable()), own.roster.left_out) == (["a0", "a1"], {})


def test_a_client_whose_permission_is_gone_in_a_run_is_no_longer_reachable_and_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, grid = registrar(allow(a0=LATER, a1=LATER)), grid_of("a0", "a1")
    own.refresh(grid, 5.0)
    assert list(own.roster.reachable()) == ["a0", "a1"]
    own.roster.allowed = allow(a0=LATER)
    with caplog.at_level(logging.WARNING):
        own.refresh(grid, 5.0)
        own.refresh(grid, 5.0)
    assert list(own.roster.reachable()) == ["a0"]
    assert own.roster.left_out == {"client 'a1'": "it claims client 'a1', which is not on the allow-list"}
    assert caplog.text.count("client 'a1' is left out") == 1
    own.roster.allowed = allow(a0=LATER, a1=LATER)
    own.refresh(grid, 5.0)
    assert (list(own.roster.reachable()), own.roster.left_out) == (["a0", "a1"], {})


def test_a_client_goes_on_at_a_node_that_has_its_new_key() -> None:
    own, grid = registrar(allow(a0=LATER)), grid_of("a0", "a0")
    grid.present = {1}
    own.refresh(grid, 5.0)
    own.roster.allowed = AllowList({"a0": Permission(one_line_key(KEYS[1]), LATER)})
    own.refresh(grid, 5.0)
    assert own.roster.reachable() == {}
    grid.present = {1, 2}
    own.refresh(grid, 5.0)
    assert own.roster.nodes == {"a0": 2}
    assert list(own.roster.reachable()) == ["a0"]
    assert own.roster.left_out == {}


def hosting(node_key: bytes, *names: str) -> tuple[SiteGrid, Registrar]:
    """Return a grid of one node that says it hosts ``names``, asked once."""
    app = ClientApp()

    @app.query("signature")
    def signature(message: Message, context: Any) -> Message:
        return Message(SignatureReply([make_card(name) for name in names], {}).encode(), reply_to=message)

    grid, asking = SiteGrid({}, [{}], [node_key]), registrar()
    grid._client_app = app
    asking.refresh(grid, 1.0)
    return grid, asking


def test_one_supernode_speaks_for_one_client_and_a_simulated_one_for_any_number() -> None:
    names = [f"client-{number}" for number in range(2000)]
    _, greedy = hosting(PEMS[0], *names)
    assert greedy.roster.reachable() == {}
    assert greedy.roster.left_out == {"node 1": "it claims 2000 clients, federation.clients-per-node allows 1"}
    for key in (b"", b"\x00" * 32):
        assert len(hosting(key, *names)[1].roster.reachable()) == 2000
    assert list(hosting(PEMS[0], "client-0")[1].roster.reachable()) == ["client-0"]


def test_a_deployment_without_an_allow_list_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for key, warned in ((PEMS[0], 1), (b"", 0)):
        caplog.clear()
        grid, asking = hosting(key, "client-0")
        asking.refresh(grid, 1.0)
        assert sum("there is no allow-list" in line for line in caplog.messages) == warned


def test_a_node_cannot_say_why_anothers_client_takes_no_part() -> None:
    roster = Roster()
    roster.see([1, 2], {})
    roster.enter(1, SignatureReply([make_card("a")], {}))
    roster.enter(2, SignatureReply([], {"a": "its data are gone", "b": "it has no samples"}))
    assert roster.left_out == {
        "node 2": "it tells why client 'a' takes no part, but node 1 is that client",
        "client 'b'": "it has no samples",
    }
    listed = Roster(allow(client_0=LATER))
    listed.see([1], {1: PEMS[1]})
    listed.enter(1, SignatureReply([], {"client_0": "its data are gone"}))
    assert list(listed.left_out) == ["node 1"]
    roster.enter(1, SignatureReply([make_card("b")], {}))
    assert "client 'b'" not in roster.left_out
