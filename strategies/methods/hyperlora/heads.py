"""The heads that clients are served: the anchor's, mixed with what follows from class statistics in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from models.personalization.head_generator import HeadGenerator
from models.personalization.leaning import Leaning, leaning
from strategies.methods.hyperlora.state import HyperLoraState


def with_heads(
    state: HyperLoraState, cards: Sequence[ClientCard], starts: Sequence[Adapter], prior: float
) -> list[Adapter]:
    """Return ``starts`` with scale ((1 - share) own head + share generated head); both numbers are the state's.

    A client adds ``prior`` times the logarithm of its smoothed class frequencies to the bias; where it does, what the
    federation's class counts say of these frequencies is put in their place.

    Args:
        state: of the server; where it has no class statistics the starts stay as they are.
        cards: the clients.
        starts: of the clients, in their order.
        prior: strength gamma of the class prior that clients add; 0 where they add none.
    """
    generator, share, scale = state.head_generator, state.head_share, state.head_scale
    if generator is None or not share:
        return list(starts)
    distances = state.distances([card.client_id for card in cards], generator.names)
    return [
        Adapter(start.low_rank, scale * ((1 - share) * start.head + share * head) + bias)
        for card, start, (head, bias) in zip(
            cards, starts, _made(state, generator, cards, distances, prior), strict=True
        )
    ]


def leaning_of(state: HyperLoraState, card: ClientCard) -> Leaning | None:
    """Return whose class statistics a client's served head leans on; None where heads are the anchor's."""
    generator = state.head_generator
    if generator is None or not state.head_share:
        return None
    name = card.client_id
    distances = state.distances([name], generator.names)[0]
    return replace(leaning(generator, name, distances, state.class_statistics.get(name)), share=float(state.head_share))


def _made(
    state: HyperLoraState, generator: HeadGenerator, cards: Sequence[ClientCard], distances: Tensor, prior: float
) -> list[tuple[Tensor, Tensor]]:
    """Return for every client the generated head and what is added to the bias of the mixture, both (C, d + 1)."""
    made = []
    for card, row in zip(cards, distances, strict=True):
        own = state.class_statistics.get(card.client_id)
        head = generator.head(card.client_id, row, own)
        bias = torch.zeros_like(head)
        if own is not None:
            bias[:, -1] = prior * (generator.log_frequencies(own) - card.signature.class_frequencies.log())
        made.append((head, bias))
    return made
