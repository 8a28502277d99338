"""The start that all clients share where ``lora.start`` is ``eva``: asked of those that train, once, before round 1."""

from __future__ import annotations

from functools import partial

from flwr.serverapp import Grid

from hyperlora.messages.inputs import InputsReply, InputsRequest, widest
from models.adapters.adapter import Adapter
from models.adapters.input_moments import common_start
from models.adapters.rank_budget import Worth
from strategies.engine.records import RoundRecord
from strategies.federation.registrar import Registrar
from strategies.federation.roster import FederationError
from strategies.federation.transport import Exchange

ROWS_PER_RANK = 4
"""Rows of each covariance that a client sends for each rank of the adapter."""


def start_from_inputs(
    fresh: Adapter, registrar: Registrar, grid: Grid, record: RoundRecord, *, timeout: float
) -> tuple[Adapter, Worth]:
    """Ask every reachable client that trains what its modules read, and return the start made of it.

    Args:
        fresh: the adapter that it takes the place of.
        registrar: who can be reached.
        grid: sends the messages.
        record: of round 1; has their bytes and failures afterwards. Who does not answer has no say in the start.
        timeout: seconds after which a missing reply is given up.

    Raises:
        FederationError: nobody answered.
    """
    exchange: Exchange[InputsRequest] = Exchange()
    rank = min(ROWS_PER_RANK * fresh.rank, widest(fresh))
    for name, card in registrar.roster.reachable().items():
        if card.trains:
            exchange.add(
                InputsRequest(name, record.server_round, rank),
                node_id=registrar.roster.nodes[name],
                recipient=name,
                ttl=timeout,
                server_round=record.server_round,
                backbone=registrar.shipped_fingerprint,
            )
    answers = exchange.ask(grid, timeout, partial(InputsReply.decode, like=fresh))
    record.note_answers("inputs", answers)
    if not answers.answered:
        reasons = "; ".join(dict.fromkeys(answers.failures.values()))
        raise FederationError(f"lora.start is eva, and no client told what its modules read: {reasons}")
    return common_start(fresh, [reply.moments for _, reply in answers.answered])
