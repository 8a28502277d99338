"""Domains that train one after the other (``federation.domain-rounds``): whose turn a round is."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from hyperlora.messages.signature import ClientCard
from strategies.federation.roster import FederationError

log = logging.getLogger(__name__)


def in_turn(
    clients: Mapping[str, ClientCard], known: Iterable[ClientCard], *, rounds: int, least: int, server_round: int
) -> dict[str, ClientCard]:
    """Return those of ``clients`` that have the domain whose turn it is; all where domains take no turns.

    Round t is the turn of domain ((t - 1) // ``rounds``) mod D of the D domains that train, in alphabetical order.

    Args:
        clients: who could train, by client-id.
        known: every client that is known; those that are away count, so that nobody's turn moves with them.
        rounds: rounds of a turn; 0 where domains take none.
        least: clients of a domain that takes turns, so that a round of its own can count.
        server_round: t, from 1 on.
    """
    if not rounds:
        return dict(clients)
    domains = sorted(_large(known, least)) or [""]
    turn = domains[(server_round - 1) // rounds % len(domains)]
    return {name: card for name, card in clients.items() if card.domain == turn}


def require_turns(known: Iterable[ClientCard], *, rounds: int, least: int) -> None:
    """Refuse turns that cannot be taken, and name the domains that are too small to take one.

    Raises:
        FederationError: fewer than two domains can take turns.
    """
    if not rounds:
        return
    sizes = _sizes(known)
    small = {name: size for name, size in sorted(sizes.items()) if size < least}
    if len(sizes) - len(small) < 2:
        found = ", ".join(f"'{name}' ({size})" for name, size in sorted(sizes.items()))
        raise FederationError(
            f"federation.domain-rounds is {rounds}, but fewer than two domains have {least} clients that train "
            f"(federation.min-replies): {found}; set it to 0, or give clients domains that can take turns"
        )
    for name, size in small.items():
        log.warning("domain '%s' has %d clients that train and takes no turn: a round needs %d", name, size, least)


def _large(known: Iterable[ClientCard], least: int) -> list[str]:
    return [name for name, size in _sizes(known).items() if size >= least]


def _sizes(known: Iterable[ClientCard]) -> Counter[str]:
    """Return how many clients of each domain train."""
    return Counter(card.domain for card in known if card.trains)
