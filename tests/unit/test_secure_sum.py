"""Secure sums: the server learns the total of those that answered, and nothing takes the masks off a single vector."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlora.secure_sum import keys
from hyperlora.secure_sum.collector import Collector, UnmaskableError
from hyperlora.secure_sum.fixed_point import FixedPoint, Part, Vector
from hyperlora.secure_sum.graph import Graph
from hyperlora.secure_sum.participant import Participant, SecureSumError

LAYOUT = FixedPoint({"counts": Part((3,), 100.0), "sums": Part((3, 2), 10.0)}, clients=8)
NAMES = ["anna", "ben", "cleo", "dora", "emil"]
LATE = ["no_agreement", "no_unmasking"]
STEPS = ["no_shares", "no_vector", *LATE]


def told(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"counts": 9 * torch.rand(3, generator=generator), "sums": torch.randn(3, 2, generator=generator)}


VECTORS = {name: LAYOUT.encode(told(seed)) for seed, name in enumerate(NAMES)}


def kept(one: Participant) -> Participant:
    """Return a participant as it comes back from where a client keeps it between two messages."""
    return Participant.from_bytes(one.to_bytes())


def run_sum(
    vectors: Mapping[str, Vector],
    *,
    no_shares: Collection[str] = (),
    no_vector: Collection[str] = (),
    no_agreement: Collection[str] = (),
    no_unmasking: Collection[str] = (),
    least: int = 3,
) -> tuple[Vector, Collector]:
    clients = {name: Participant(name, least) for name in vectors}
    server = Collector(LAYOUT.length)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    clients = {name: kept(one) for name, one in clients.items()}
    server.take_shares({n: one.sealed_shares(server.public) for n, one in clients.items() if n not in no_shares})
    clients = {name: kept(one) for name, one in clients.items()}
    for name in sorted(server.sealed.keys() - set(no_vector)):
        server.add(name, clients[name].masked(server.sealed_for(name), vectors[name]))
    clients = {name: kept(one) for name, one in clients.items()}
    unmask(server, clients, no_agreement=no_agreement, no_unmasking=no_unmasking)
    return server.unmasked(), server


def unmask(
    server: Collector,
    clients: Mapping[str, Participant],
    *,
    no_agreement: Collection[str] = (),
    no_unmasking: Collection[str] = (),
) -> None:
    for name in sorted(server.added.keys() - set(no_agreement)):
        server.take_agreement(name, clients[name].agreement(server.added, server.dropped)[name])
    clients = {name: kept(one) for name, one in clients.items()}
    for name in sorted(server.agreed.keys() - set(no_unmasking)):
        server.take_unmasking(name, clients[name].unmasking(server.signatures, server.dropped))


def plain(names: Collection[str]) -> Vector:
    return np.stack([VECTORS[name] for name in names]).sum(axis=0, dtype=np.uint32)


def test_the_sum_is_that_of_the_plain_vectors() -> None:
    total, _ = run_sum(VECTORS)
    np.testing.assert_array_equal(total, plain(NAMES))
    exact = torch.stack([told(seed)["sums"] for seed in range(len(NAMES))]).sum(dim=0)
    torch.testing.assert_close(LAYOUT.decode(total)["sums"].float(), exact, rtol=0, atol=5 * 10 * 8 / 2**31)


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_drops_out_costs_its_own_part_only(step: str) -> None:
    total, _ = run_sum(VECTORS, **{step: ["ben"]})  # type: ignore[arg-type]
    counted = NAMES if step in LATE else [name for name in NAMES if name != "ben"]
    np.testing.assert_array_equal(total, plain(counted))


@settings(max_examples=8, deadline=None)
@given(st.sets(st.sampled_from(NAMES), max_size=2), st.sampled_from(STEPS))
def test_any_minority_may_drop_out(gone: set[str], step: str) -> None:
    total, _ = run_sum(VECTORS, **{step: gone})  # type: ignore[arg-type]
    counted = NAMES if step in LATE else [name for name in NAMES if name not in gone]
    np.testing.assert_array_equal(total, plain(counted))


def test_too_few_answers_give_no_sum() -> None:
    with pytest.raises(UnmaskableError, match="2 shares of what hides 'anna' do not give it, 3 right ones do"):
        run_sum(VECTORS, no_unmasking=["anna", "ben", "cleo"])
    with pytest.raises(SecureSumError, match="2 clients signed who is in the sum, and 3 is the least"):
        run_sum(VECTORS, no_agreement=["anna", "ben", "cleo"])
    with pytest.raises(SecureSumError, match="2 of 5 clients are left, and 3 is the least"):
        run_sum(VECTORS, no_vector=["anna", "ben", "cleo"])


def test_the_server_holds_no_vector_of_a_client() -> None:
    _, server = run_sum(VECTORS)
    memory = pickle.dumps(server)
    for vector in VECTORS.values():
        assert vector.tobytes() not in memory
        assert vector[:3].tobytes() not in memory


def test_a_masked_vector_tells_nothing_of_what_is_behind_it() -> None:
    length, clients = 4000, {name: Participant(name, 3) for name in NAMES}
    public = {name: one.keys() for name, one in clients.items()}
    sealed = {name: one.sealed_shares(public) for name, one in clients.items()}
    mine = {by: texts["anna"] for by, texts in sealed.items() if by != "anna"}
    masked = clients["anna"].masked(mine, np.zeros(length, np.uint32))
    shares = masked / 2**32
    assert abs(shares.mean() - 0.5) < 4 * (1 / 12 / length) ** 0.5
    assert abs(np.corrcoef(shares[:-1], shares[1:])[0, 1]) < 4 / length**0.5


def ready() -> tuple[dict[str, Participant], Collector]:
    """Return clients that have given their masked vectors to a server."""
    clients, server = {name: Participant(name, 3) for name in NAMES}, Collector(LAYOUT.length)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    server.take_shares({name: one.sealed_shares(server.public) for name, one in clients.items()})
    for name, one in clients.items():
        server.add(name, one.masked(server.sealed_for(name), VECTORS[name]))
    return clients, server


def test_no_client_tells_both_shares_of_another() -> None:
    clients, server = ready()
    with pytest.raises(SecureSumError, match="nobody twice"):
        clients["anna"].agreement(server.added, ["ben"])


def test_no_client_is_asked_twice() -> None:
    clients, server = ready()
    unmask(server, clients)
    anna = clients["anna"]
    with pytest.raises(SecureSumError, match="are others than this client signed"):
        anna.unmasking({name: one for name, one in server.signatures.items() if name != "ben"}, ["ben"])
    with pytest.raises(SecureSumError, match="out of turn"):
        anna.unmasking(server.signatures, [])


def test_no_client_takes_part_in_a_sum_over_too_few() -> None:
    anna = Participant("anna", least=5)
    public = {name: Participant(name, least=5).keys() for name in NAMES[1:4]}
    public["anna"] = anna.keys()
    with pytest.raises(SecureSumError, match="a sum over 4 clients tells too much of each: 5 is the least"):
        anna.sealed_shares(public)


def test_no_client_takes_part_with_a_server_that_plays_several() -> None:
    anna, other = Participant("anna", 3), Participant("ben", 3).keys()
    with pytest.raises(SecureSumError, match="two participants have the same public key"):
        anna.sealed_shares({"anna": anna.keys(), "ben": other, "cleo": other})


def with_shares_changed(names: Collection[str], change: Callable[[bytes], bytes]) -> Vector:
    """Return the sum where some clients send others changed shares."""
    clients, server = {name: Participant(name, 3) for name in NAMES}, Collector(LAYOUT.length)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    sealed = {name: one.sealed_shares(server.public) for name, one in clients.items()}
    for name in names:
        sealed[name] = {to: change(text) for to, text in sealed[name].items()}
    server.take_shares(sealed)
    for name, one in clients.items():
        server.add(name, one.masked(server.sealed_for(name), VECTORS[name]))
    unmask(server, clients)
    return server.unmasked()


def test_a_client_that_seals_nonsense_is_named() -> None:
    with pytest.raises(UnmaskableError, match="1 shares of what hides 'ben' do not give it") as caught:
        with_shares_changed(["ben"], lambda text: text[:40] + bytes([text[40] ^ 1]) + text[41:])
    assert (caught.value.name, caught.value.at_fault) == ("ben", True)


def test_a_client_that_tells_wrong_shares_of_others_changes_nothing() -> None:
    clients, server = {name: Participant(name, 3) for name in NAMES}, Collector(LAYOUT.length)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    server.take_shares({name: one.sealed_shares(server.public) for name, one in clients.items()})
    for name in NAMES[:4]:
        server.add(name, clients[name].masked(server.sealed_for(name), VECTORS[name]))
    for name in NAMES[:4]:
        server.take_agreement(name, clients[name].agreement(server.added, ["emil"])[name])
    for name in NAMES[:4]:
        shares = clients[name].unmasking(server.signatures, ["emil"])
        server.take_unmasking(name, {to: bytes(len(one)) for to, one in shares.items()} if name == "anna" else shares)
    np.testing.assert_array_equal(server.unmasked(), plain(NAMES[:4]))


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_keys_of_another_length_are_none(key: bytes) -> None:
    good = Participant("anna", 3).keys()
    for name in ("masks", "seals", "signs", "seed"):
        with pytest.raises(SecureSumError, match="is not of 32 bytes"):
            replace(good, **{name: key})
    with pytest.raises(SecureSumError, match="more than 256 bytes"):
        replace(good, vouched=bytes(257))


def test_a_public_key_that_is_none_costs_its_own_client() -> None:
    server, good = Collector(1), Participant("anna", 3).keys()
    with pytest.raises(SecureSumError, match="has a public key that is none"):
        server.take_keys("ben", replace(good, masks=bytes(32)))
    server.take_keys("anna", good)
    with pytest.raises(SecureSumError, match="used already"):
        server.take_keys("ben", good)


def test_a_share_of_no_participant_is_refused() -> None:
    with pytest.raises(SecureSumError, match="is no other participant"):
        kept(Participant("dora", 3, step="masked")).masked({"ben": b""}, VECTORS["dora"])


def test_the_server_takes_one_vector_of_a_participant() -> None:
    _, server = run_sum(VECTORS)
    with pytest.raises(SecureSumError, match="is in it already"):
        server.add("anna", VECTORS["anna"])
    with pytest.raises(SecureSumError, match="no part in the sum"):
        server.add("zoe", VECTORS["anna"])


def test_masks_differ_by_seed_and_are_reproduced() -> None:
    one, other = keys.fresh_seed(), keys.fresh_seed()
    np.testing.assert_array_equal(keys.mask(one, 9), keys.mask(one, 12)[:9])
    assert not np.array_equal(keys.mask(one, 9), keys.mask(other, 9))


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=2), st.integers(1, 1000))
def test_fixed_point_cuts_at_the_bound_and_is_exact_to_a_step(values: list[float], clients: int) -> None:
    layout = FixedPoint({"x": Part((2,), 8.0)}, clients)
    exact = torch.tensor(values, dtype=torch.float64)
    found = layout.decode(layout.encode({"x": exact}))["x"]
    torch.testing.assert_close(found, exact.clamp(-8, 8), rtol=0, atol=2 * 8 * clients / 2**31)


def test_no_sum_of_as_many_clients_overflows() -> None:
    layout = FixedPoint({"x": Part((1,), 8.0)}, clients=100)
    vector = layout.encode({"x": torch.tensor([8.0])})
    total = (vector.astype(np.uint64) * 100 % 2**32).astype(np.uint32)
    assert float(layout.decode(total)["x"]) == pytest.approx(800.0, rel=1e-6)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"x": torch.tensor([float("nan")])}, "not finite"),
        ({"x": torch.zeros(2)}, "of shape"),
        ({"y": torch.zeros(1)}, "expected the tensors"),
    ],
)
def test_what_does_not_fit_is_refused(tensors: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FixedPoint({"x": Part((1,), 1.0)}, 5).encode(tensors)


def test_one_who_writes_anothers_key_differently_has_other_masks_with_everybody() -> None:
    anna, ben = Participant("anna", 3), Participant("ben", 3)
    public = {"anna": anna.keys(), "ben": ben.keys()}
    same = bytes([*public["ben"].masks[:31], public["ben"].masks[31] ^ 0x80])  # X25519 passes the highest bit over
    assert keys.agreed_key(anna.private[0], same, "one") == keys.agreed_key(anna.private[0], public["ben"].masks, "one")
    public["mallory"] = replace(Participant("mallory", 3).keys(), masks=same)
    graph = Graph.of(public)
    seeds = {graph.mask_seed(anna.private[0], "anna", other, public[other]) for other in ("ben", "mallory")}
    assert len(seeds) == 2


@pytest.mark.parametrize("liars", [1, 4])
def test_liars_are_found_by_their_first_wrong_share_and_ban_nobody(liars: int) -> None:
    names = [f"client-{index:02}" for index in range(24)]
    clients, server = {name: Participant(name, 5) for name in names}, Collector(2)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    server.take_shares({name: one.sealed_shares(server.public) for name, one in clients.items()})
    vectors = {name: np.array([index, 7], np.uint32) for index, name in enumerate(names)}
    for name in names:
        server.add(name, clients[name].masked(server.sealed_for(name), vectors[name]))
    for name in names:
        server.take_agreement(name, clients[name].agreement(server.added, [])[name])
    for name in names:
        shares = clients[name].unmasking(server.signatures, [])
        wrong = {owner: share[:4] + bytes(32) for owner, share in shares.items()}
        server.take_unmasking(name, wrong if name in names[:liars] else shares)
    np.testing.assert_array_equal(server.unmasked(), sum(vectors.values()))
    assert server.liars == set(names[:liars])


def test_a_share_of_anothers_number_or_of_one_who_holds_none_is_not_taken() -> None:
    clients, server = {name: Participant(name, 3) for name in NAMES}, Collector(1)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    server.take_shares({name: one.sealed_shares(server.public) for name, one in clients.items()})
    anna, ben = NAMES[:2]
    server.take_unmasking(anna, {ben: (2).to_bytes(4, "big") + bytes(32), "nobody": bytes(36)})
    server.take_unmasking("stranger", {ben: (1).to_bytes(4, "big") + bytes(32)})
    assert not server.shares
    server.take_unmasking(anna, {ben: (1).to_bytes(4, "big") + bytes(32)})
    assert list(server.shares[ben]) == [anna]


def test_sealed_texts_that_are_far_too_long_are_not_passed_on() -> None:
    clients, server = {name: Participant(name, 3) for name in NAMES}, Collector(1)
    for name, one in clients.items():
        server.take_keys(name, one.keys())
    sealed = {name: one.sealed_shares(server.public) for name, one in clients.items()}
    anna, ben = NAMES[:2]
    assert max(map(len, sealed[anna].values())) < 600
    sealed[anna][ben] = bytes(2000)
    server.take_shares(sealed)
    assert server.sealed_for(ben)[anna] == b""
