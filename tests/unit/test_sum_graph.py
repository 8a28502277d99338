"""Sums on a sparse graph: they are right with dropouts in every step, and a server that lies about who is in them gets
no share of anybody."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import pytest

from hyperlora.secure_sum import graph as graphs
from hyperlora.secure_sum import keys
from hyperlora.secure_sum.bounds import least_agreed, neighbours_needed
from hyperlora.secure_sum.collector import SIGNATURE, Collector
from hyperlora.secure_sum.fixed_point import Vector
from hyperlora.secure_sum.graph import Graph
from hyperlora.secure_sum.participant import Participant
from hyperlora.secure_sum.public_keys import PublicKeys, SecureSumError

COUNT, LENGTH = 46, 7
NAMES = [f"client-{index:02}" for index in range(COUNT)]
VECTORS: dict[str, Vector] = {
    name: np.random.default_rng(index).integers(0, 2**32, LENGTH, dtype=np.uint32) for index, name in enumerate(NAMES)
}
Clients = dict[str, Participant]


def started(names: Iterable[str], no_shares: Collection[str] = ()) -> tuple[Clients, Collector]:
    """Return clients and server after step 2."""
    clients, server = {name: Participant(name, 5) for name in names}, Collector(LENGTH)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    server.take_shares({n: one.sealed_shares(server.public) for n, one in clients.items() if n not in no_shares})
    return clients, server


@pytest.fixture(scope="module")
def beginning() -> tuple[Clients, Collector]:
    return started(NAMES, no_shares=NAMES[:3])


@pytest.fixture
def shared(beginning: tuple[Clients, Collector]) -> tuple[Clients, Collector]:
    """Clients and server, three of which did not answer step 2."""
    return copy.deepcopy(beginning)


def add(clients: Clients, server: Collector, names: Iterable[str]) -> None:
    for name in names:
        server.add(name, clients[name].masked(server.sealed_for(name), VECTORS[name]))


View = tuple[Mapping[str, bytes], list[str]]


def told(clients: Clients, views: Callable[[str], View]) -> tuple[list[dict[str, bytes]], set[str]]:
    """Return what clients tell a server that shows each a view, and all signatures that any gave; and the refusals."""
    signed, refusals, told = dict[str, bytes](), set[str](), list[dict[str, bytes]]()
    asked = [name for name in clients if clients[name].step == "agree"]
    for name in asked:
        try:
            signed |= clients[name].agreement(*views(name))
        except SecureSumError as error:
            refusals.add(str(error))
    for name in asked:
        answered, dropped = views(name)
        try:
            told.append(clients[name].unmasking({other: signed.get(other, b"") for other in answered}, dropped))
        except SecureSumError as error:
            refusals.add(str(error))
    return told, refusals


def moved(server: Collector, gone: Collection[str]) -> View:
    """Return the view in which some that answered did not."""
    answered = {name: one for name, one in server.added.items() if name not in gone}
    return answered, sorted(server.sealed.keys() - answered.keys())


def test_the_sum_is_right_with_dropouts_in_every_step_and_one_that_lies(shared: tuple[Clients, Collector]) -> None:
    clients, server = shared
    degrees = {len(one) for one in server.graph.neighbours.values()}
    assert neighbours_needed(COUNT) <= min(degrees) <= max(degrees) < COUNT - 1
    add(clients, server, NAMES[6:])
    server.check()
    for name in NAMES[8:]:
        server.take_agreement(name, clients[name].agreement(server.added, server.dropped)[name])
    for name in NAMES[11:]:
        shares = clients[name].unmasking(server.signatures, server.dropped)
        lies = name == NAMES[30]
        server.take_unmasking(name, {to: share[:-1] + b"?" for to, share in shares.items()} if lies else shares)
    plain = np.stack([VECTORS[name] for name in NAMES[6:]]).sum(axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(server.unmasked(), plain)


def test_shares_and_masks_go_to_neighbours_alone(shared: tuple[Clients, Collector]) -> None:
    _, server = shared
    for name, texts in server.sealed.items():
        assert texts.keys() == server.graph.neighbours[name] & server.sealed.keys()


def test_every_party_makes_the_same_graph_and_another_key_makes_another(shared: tuple[Clients, Collector]) -> None:
    _, server = shared
    found, backwards = Graph.of(server.public), Graph.of(dict(reversed(server.public.items())))
    assert found == backwards == server.graph
    assert all(name in found.neighbours[other] for name in NAMES for other in found.neighbours[name])
    changed = {**server.public, NAMES[0]: Participant(NAMES[0], 5).keys()}
    assert Graph.of(changed).neighbours != found.neighbours


def test_a_share_of_who_is_no_neighbour_is_refused(shared: tuple[Clients, Collector]) -> None:
    clients, server = shared
    name = NAMES[9]
    stranger = min(server.sealed.keys() - set(server.graph.holders(name)))
    with pytest.raises(SecureSumError, match=f"'{stranger}' is said to have sealed shares .* and is no neighbour"):
        clients[name].masked({**server.sealed_for(name), stranger: b"text"}, VECTORS[name])


def test_a_client_refuses_keys_that_are_not_its_own() -> None:
    clients = {name: Participant(name, 5) for name in NAMES[:6]}
    public = {name: one.keys() for name, one in clients.items()}
    server_made = Participant(NAMES[0], 5).keys()
    with pytest.raises(SecureSumError, match="are not its own"):
        clients[NAMES[0]].sealed_shares({**public, NAMES[0]: server_made})


def test_shares_cannot_be_opened_by_who_is_told_of_other_participants() -> None:
    clients = {name: Participant(name, 5) for name in NAMES[:7]}
    public = {name: one.keys() for name, one in clients.items()}
    fewer = {name: one for name, one in public.items() if name != NAMES[6]}
    text = clients[NAMES[0]].sealed_shares(public)[NAMES[1]]
    clients[NAMES[1]].sealed_shares(fewer)
    clients[NAMES[1]].masked({**dict.fromkeys(NAMES[2:6], b""), NAMES[0]: text}, VECTORS[NAMES[1]])
    assert clients[NAMES[1]].shares[NAMES[0]] == (b"", b"")


def test_no_share_where_each_neighbourhood_is_told_its_own_story(shared: tuple[Clients, Collector]) -> None:
    """All neighbours of one are said to have dropped out, each to its own neighbours alone, who find that plausible."""
    clients, server = shared
    add(clients, server, NAMES[3:])
    victim = NAMES[20]
    around = sorted(server.graph.neighbours[victim] & server.added.keys())

    def story(name: str) -> View:
        gone = [one for one in around if one != name and name in server.graph.neighbours[one]]
        return moved(server, gone[: len(gone) // 2 + NAMES.index(name) % 3])

    shares, refusals = told(clients, story)
    assert shares == []
    assert any("signed who is in the sum" in reason for reason in refusals)


def test_no_share_of_both_kinds_from_two_halves(shared: tuple[Clients, Collector]) -> None:
    clients, server = shared
    add(clients, server, NAMES[3:])
    views = [moved(server, []), moved(server, [NAMES[20]])]
    shares, refusals = told(clients, lambda name: views[NAMES.index(name) % 2 if name != NAMES[20] else 0])
    assert shares == []
    assert refusals == {
        f"{(COUNT - 3) // 2 + half} clients signed who is in the sum, and {least_agreed(COUNT)} is the least"
        for half in (0, 1)
    }


def test_who_agrees_with_most_is_told_apart_from_who_does_not(shared: tuple[Clients, Collector]) -> None:
    """Where most are told one story, those that are told another say nothing: shares of both kinds never come out."""
    clients, server = shared
    add(clients, server, NAMES[3:])
    views = [moved(server, []), moved(server, [NAMES[20]])]
    shares, _ = told(clients, lambda name: views[NAMES.index(name) in range(30, 40)])
    assert len(shares) == COUNT - 3 - 10
    of_key = {one.shares[NAMES[20]][1] for one in clients.values() if NAMES[20] in one.shares}
    assert not of_key & {one[NAMES[20]] for one in shares if NAMES[20] in one}


def test_no_share_of_one_that_was_told_of_fewer_to_mask_with(shared: tuple[Clients, Collector]) -> None:
    """One masks with fewer neighbours than others think, so that fewer masks hide it from a server that drops those."""
    clients, server = shared
    victim = NAMES[20]
    add(clients, server, [name for name in NAMES[3:] if name != victim])
    hidden = sorted(server.graph.neighbours[victim] & server.sealed.keys())[:12]
    texts = {by: text for by, text in server.sealed_for(victim).items() if by not in hidden}
    masked = clients[victim].masked(texts, VECTORS[victim])
    with pytest.raises(SecureSumError, match=f"'{victim}' did not sign whom its vector is masked with"):
        server.add(victim, masked)
    server.added[victim] = masked[-SIGNATURE:].tobytes()  # a server that goes on all the same
    shares, refusals = told(clients, lambda name: moved(server, []))
    assert shares == []
    assert any(reason.startswith(f"'{victim}' did not sign that") for reason in refusals)


def one_aside(digest: bytes, names: list[str], degree: int) -> dict[str, frozenset[str]]:
    """Return the complete graph, but for the first, who has four neighbours."""
    first, others, few = names[0], frozenset(names[1:]), frozenset(names[1:5])
    rest = {name: others - {name} | ({first} if name in few else set()) for name in others}
    return {first: few, **rest}


def test_too_few_of_one_neighbourhood_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_connected", one_aside)
    clients, server = started(NAMES[:13])
    add(clients, server, [NAMES[0], *NAMES[4:13]])
    reason = f"2 of '{NAMES[0]}' and its neighbours are left, and 3 is the least"
    with pytest.raises(SecureSumError, match=reason):
        server.check()
    shares, refusals = told(clients, lambda name: moved(server, []))
    assert shares == []
    assert reason in refusals


def two_halves(digest: bytes, names: list[str], degree: int) -> dict[str, frozenset[str]]:
    """Return a graph that one client alone holds together, the first."""
    middle, halves = names[0], (frozenset(names[1:7]), frozenset(names[7:]))
    found = {name: half - {name} | {middle} for half in halves for name in half}
    return {**found, middle: halves[0] | halves[1]}


def test_clients_that_fall_into_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_connected", two_halves)
    clients, server = started(NAMES[:13])
    add(clients, server, NAMES[1:13])
    with pytest.raises(SecureSumError, match="6 of 12 clients have masks with each other and with none of the rest"):
        server.check()
    shares, refusals = told(clients, lambda name: moved(server, []))
    assert shares == []
    assert any("with none of the rest" in reason for reason in refusals)


def test_a_sum_over_fewer_than_the_least_is_refused_however_many_neighbours_are_left() -> None:
    clients, server = started(NAMES[:8])
    for one in clients.values():
        one.least = 8
    add(clients, server, NAMES[:8])
    shares, refusals = told(clients, lambda name: moved(server, [NAMES[7]]))
    assert shares == []
    assert "7 of 8 clients are left, and 8 is the least for a sum" in refusals


def test_a_signature_of_another_counts_for_nobody(shared: tuple[Clients, Collector]) -> None:
    _, server = shared
    name = NAMES[5]
    server.added = dict.fromkeys(NAMES[3:], b"")
    with pytest.raises(SecureSumError, match="did not sign who is in the sum"):
        server.take_agreement(name, keys.sign(keys.signing_pair()[0], b"any"))
    assert not keys.signed(b"short", b"short", b"any")
    assert isinstance(server.public[name], PublicKeys)


def test_nobody_signs_a_sum_in_which_one_client_was_asked_another_question() -> None:
    clients, server = started(NAMES[:7])
    for name, one in clients.items():
        asked = b"of its own" if name == NAMES[0] else b"of all"
        vector = one.masked(server.sealed_for(name), VECTORS[name], asked)
        server.asked = asked
        server.add(name, vector)
    told_shares, refusals = told(clients, lambda name: moved(server, []))
    assert told_shares == []
    assert any(
        f"'{NAMES[0]}' did not sign that it masked with the same clients and was asked" in one for one in refusals
    )
    assert any(f"'{NAMES[1]}' did not sign that" in one for one in refusals)
