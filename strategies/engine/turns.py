"""Domains that train one after the other (``federation.domain-rounds``): whose turn a round is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from hyperlora.messages.signature import ClientCard
from strategies.federation.roster import FederationError


def in_turn(
    clients: Mapping[str, ClientCard], known: Iterable[ClientCard], *, rounds: int, server_round: int
) -> dict[str, ClientCard]:
    """Return those of ``clients`` that have the domain whose turn it is; all where domains take no turns.

    Round t is the turn of domain ((t - 1) // ``rounds``) mod D of the D domains that train, in alphabetical order.

    Args:
        clients: who could train, by client-id.
        known: every client that is known; those that are away count, so that nobody's turn moves with them.
        rounds: rounds of a turn; 0 where domains take none.
        server_round: t, from 1 on.
    """
    if not rounds:
        return dict(clients)
    domains = sorted(_sizes(known))
    turn = domains[(server_round - 1) // rounds % len(domains)]
    return {name: card for name, card in clients.items() if card.domain == turn}


def require_turns(known: Iterable[ClientCard], *, rounds: int, min_replies: int) -> None:
    """Refuse turns that cannot be taken.

    Raises:
        FederationError: there is one domain only, or one that is too small for ``min_replies``.
    """
    if not rounds:
        return
    sizes = _sizes(known)
    if len(sizes) < 2:
        raise FederationError(
            f"federation.domain-rounds is {rounds}, but all clients that train have the domain "
            f"'{next(iter(sizes), '')}': set it to 0, or give clients domains that can take turns"
        )
    smallest = min(sizes, key=lambda domain: (sizes[domain], domain))
    if sizes[smallest] < min_replies:
        raise FederationError(
            f"federation.min-replies is {min_replies}, but domain '{smallest}' has {sizes[smallest]} clients that "
            "train, so that its turn would change nothing"
        )


def _sizes(known: Iterable[ClientCard]) -> Counter[str]:
    """Return how many clients of each domain train."""
    return Counter(card.domain for card in known if card.trains)
