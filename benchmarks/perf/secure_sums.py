"""A secure sum on a sparse graph beside the complete one: the server's unmasking, and a client's work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from unittest.mock import patch

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir

from benchmarks.perf.measure import Comparison, in_turns
from hyperlora.secure_sum import graph as graphs
from hyperlora.secure_sum import keys
from hyperlora.secure_sum.bounds import neighbours_needed
from hyperlora.secure_sum.collector import Collector
from hyperlora.secure_sum.graph import Graph
from hyperlora.secure_sum.interpolation import values_at_zero
from hyperlora.secure_sum.participant import Participant
from hyperlora.secure_sum.public_keys import PublicKeys, masked_with, summed

ENTRIES, GONE = 50_000, 20
"""Entries of a vector, and one in how many clients drops out with its shares sent."""
COMPLETE, GROWN = (50, 200), 1000
SHARES = 80


def run(repeats: int) -> Iterator[Comparison]:
    """Yield sparse sums of 50 and 200 clients beside complete ones, and a sparse one of 1,000 beside that of 200."""
    turns = min(repeats, 3)
    works = {"the server's unmasking": _unmasking, "a client's work in all steps": _client_work}
    for what, work in works.items():
        for clients in COMPLETE:
            sides = {"sparse": work(clients), "complete": work(clients, complete=True)}
            seconds = in_turns(sides, turns)
            yield _compared(what, clients, "all are neighbours", seconds["complete"], seconds["sparse"], turns)
        seconds = in_turns({str(clients): work(clients) for clients in (COMPLETE[-1], GROWN)}, turns)
        small, large = seconds[str(COMPLETE[-1])], seconds[str(GROWN)]
        yield _compared(what, GROWN, f"{COMPLETE[-1]} clients", small, large, turns, growth=True)
    yield _interpolation(turns)


def _compared(
    what: str, clients: int, other: str, that: float, this: float, turns: int, *, growth: bool = False
) -> Comparison:
    case = f"secure sum of {clients:,} clients, about {neighbours_needed(clients)} neighbours each: {what}"
    ratio, bar = (this / that, "") if growth else (that / this, "at least 2" if clients == COMPLETE[-1] else "")
    return Comparison("secure_sums", case, other, that, this, "s", ratio, bar, turns)


def _interpolation(turns: int) -> Comparison:
    shares = Shamir.split(SHARES, 2 * SHARES, keys.fresh_seed()[:16], ssss=False)[:SHARES]
    points, values = [index for index, _ in shares], [int.from_bytes(one, "big") for _, one in shares]
    sides: dict[str, Callable[[], object]] = {
        "library": lambda: Shamir.combine(shares, ssss=False),
        "here": lambda: values_at_zero(points, [values]),
    }
    seconds = in_turns(sides, turns)
    that, this = seconds["library"], seconds["here"]
    case = f"a secret from {SHARES} shares"
    return Comparison("secure_sums", case, "pycryptodome's Shamir.combine", that, this, "s", that / this, "", turns)


def _graph(public: dict[str, PublicKeys], *, complete: bool) -> Graph:
    if not complete:
        return Graph.of(public)
    with patch.object(graphs, "neighbours_needed", lambda count: count - 1):
        return Graph.of(public)


@lru_cache
def _shares(secret: bytes, least: int, count: int) -> list[bytes]:
    return keys.split_secret(secret, least, count)


def _unmasking(clients: int, *, complete: bool = False) -> Callable[[], object]:
    """Return the server's last step; all clients have one seed and one key, whose shares are made once."""
    seed, (private, masks) = keys.fresh_seed(), keys.key_pair()
    public = {
        f"client-{index}": PublicKeys(masks, index.to_bytes(32, "big"), bytes(32), keys.digest(seed))
        for index in range(clients)
    }
    server = Collector(ENTRIES, public, total=np.zeros(ENTRIES, np.uint32))
    server.graph = _graph(public, complete=complete)
    server.sealed = {name: {} for name in public}
    server.added = dict.fromkeys(list(public)[clients // GONE :], b"")
    for name in public:
        holders = server.graph.holders(name)
        shares = _shares(seed if name in server.added else private, server.graph.least(name), len(holders))
        told = {holder: one for holder, one in zip(holders, shares, strict=True) if holder in server.added}
        server.shares[name] = told
    return server.unmasked


def _client_work(clients: int, *, complete: bool = False) -> Callable[[], object]:
    """Return all steps of one client after its keys, with what the others would have sent."""
    names = [f"client-{index}" for index in range(clients)]
    one, seals, signs = Participant(names[-1], 5), keys.key_pair(), [keys.signing_pair() for _ in names]
    public = {
        name: PublicKeys(keys.key_pair()[1], keys.key_pair()[1], verifier, bytes(32))
        for name, (_, verifier) in zip(names, signs, strict=True)
    }
    public[one.name] = one.keys()
    graph = _graph(public, complete=complete)
    signers = dict(zip(names, [private for private, _ in signs], strict=True)) | {one.name: one.private[2]}
    text = keys.seal(seals[0], bytes(250))
    sealed = {name: text if name in graph.neighbours[one.name] else b"" for name in names[:-1]}
    answered, dropped = names[clients // GONE :], names[: clients // GONE]
    first = {name: keys.sign(signers[name], masked_with(graph.digest, names, b"")) for name in answered}
    then = {name: keys.sign(signers[name], summed(graph.digest, answered, dropped)) for name in answered}
    vector = np.zeros(ENTRIES, np.uint32)

    def steps(party: Participant) -> None:
        party.sealed_shares(public)
        party.masked(sealed, vector)
        party.agreement(first, dropped)
        party.unmasking(then, dropped)

    def work() -> None:
        if not complete:
            return steps(copy.deepcopy(one))
        with patch.object(graphs, "neighbours_needed", lambda count: count - 1):
            return steps(copy.deepcopy(one))

    return work
