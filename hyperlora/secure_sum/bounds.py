"""How many neighbours a client of a secure sum needs, from exact tails of the hypergeometric distribution.

The neighbours of a client are a random choice of the others, which nobody steers. Of ``n`` participants fewer than a
fifth are taken to work for the server, and at most a third to drop out. Source of the analysis: Bell et al. 2020,
"Secure single-server aggregation with (poly)logarithmic overhead". Sums of binomials are exact integers here, so that
all parties get the same number.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb, log2

ONE_IN_CORRUPTED, ONE_IN_DROPPED = 5, 3
"""Fewer than one in 5 participants work for the server, and one in 3 drops out at most."""
CAPTURE_BITS, PARTS_BITS, ANSWER_BITS = 64, 40, 10
"""No client's neighbourhood is in the server's hands but with probability 2^-64 for each set of keys, of which a server
may try many before it names those of its own participants; no part of a sum has fewer than :func:`fewest_honest` honest
clients but with probability 2^-40; with a full third dropped out, a sum fails with probability 2^-10 at most."""
COMPLETE_TO, COMPLETE_FROM = 40, 3 / 4
"""Participants up to which all are neighbours, and the share of the others from which they are in larger sums."""


def corrupted(participants: int) -> int:
    """Return the most participants that may work for the server."""
    return (participants - 1) // ONE_IN_CORRUPTED


def least_answers(participants: int) -> int:
    """Return how many of a neighbourhood, itself among them, give a secret of its client: more than half."""
    return participants // 2 + 1


def least_agreed(participants: int) -> int:
    """Return how many signatures make sure that no honest client was told of another sum.

    Two groups of so many have more participants in common than work for the server.
    """
    return (participants + corrupted(participants)) // 2 + 1


def log2_captured(participants: int, degree: int, spared: int = 0) -> float:
    """Return log2 of a bound of the probability that the server has enough shares of some client by itself.

    Args:
        participants: n of the sum.
        degree: neighbours of each.
        spared: as if it needed that many fewer.
    """
    least = least_answers(degree + 1) - spared
    return log2(participants) + _log2_tail(participants - 1, corrupted(participants), degree, least)


def log2_unanswered(participants: int, degree: int) -> float:
    """Return log2 of a bound of the probability that too few of some neighbourhood are left of a third dropped out."""
    spare = degree + 1 - least_answers(degree + 1)
    return log2(participants) + _log2_tail(participants - 1, participants // ONE_IN_DROPPED, degree, spare + 1)


def fewest_honest(participants: int, degree: int) -> int:
    """Return how many honest clients are in any part of a sum that could be told apart, but for 2^-40.

    Of each neighbourhood more than half must have answered, and those of them that work for the server are fewer.
    """
    least = least_answers(degree + 1)
    safe = [spared for spared in range(least) if log2_captured(participants, degree, spared) <= -PARTS_BITS]
    return safe[-1] + 1 if safe else 0


def log2_apart(participants: int, degree: int) -> float:
    """Return log2 of a bound of the probability that honest clients that stayed fall into parts.

    Those that drop out are a third, chosen without knowledge of the graph, which is one of degree / 2 random cycles. Of
    each neighbourhood more than half stayed, as clients check, so that small parts cannot be.
    """
    helpers = corrupted(participants)
    between = helpers + participants // ONE_IN_DROPPED
    stayed = participants - between
    smallest = max(1, degree + 1 - between, least_answers(degree + 1) - helpers)
    terms = [
        log2(comb(stayed, part)) + degree // 2 * _log2_never_beside(part, stayed - part, between)
        for part in range(smallest, stayed // 2 + 1)
    ]
    largest = max(terms, default=float("-inf"))
    return largest + log2(sum(2.0 ** (term - largest) for term in terms)) if terms else largest


def _log2_never_beside(one: int, other: int, between: int) -> float:
    """Return log2 of the probability that in a random cycle no member of a group is beside one of another.

    The ``between`` others leave as many gaps, each of which has members of one group: i of them those of the first.
    """
    ways = sum(
        comb(between, i) * comb(one - 1, i - 1) * comb(between - i + other - 1, other)
        for i in range(1, min(one, between - 1) + 1)
    )
    every = comb(one + other + between - 1, one) * comb(other + between - 1, other)
    return log2(ways) - log2(every) if ways else float("-inf")


def _log2_tail(others: int, marked: int, drawn: int, least: int) -> float:
    """Return log2 P[X >= least] where ``drawn`` of ``others`` are drawn, ``marked`` of which count."""
    ways = sum(
        comb(marked, hit) * comb(others - marked, drawn - hit) for hit in range(max(least, 0), min(drawn, marked) + 1)
    )
    return log2(ways) - log2(comb(others, drawn)) if ways else float("-inf")


@lru_cache
def neighbours_needed(participants: int) -> int:
    """Return the fewest neighbours that keep both bounds, or all others where those would be most of them."""
    most = int(COMPLETE_FROM * (participants - 1)) if participants > COMPLETE_TO else 0
    for degree in range(2, most + 1, 2):
        if all(_keeps(participants, one) for one in (degree, degree + 1)):  # a client may get one more
            return degree
    return participants - 1


def _keeps(participants: int, degree: int) -> bool:
    if log2_unanswered(participants, degree) > -ANSWER_BITS:
        return False
    return log2_captured(participants, degree) <= -CAPTURE_BITS
