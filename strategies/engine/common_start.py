"""The initial adapter of all clients, computed from what the training clients send once, before round 1.

Its factors follow from the inputs of the adapted modules (``lora.start = eva``), its head from class statistics
(``lora.head-start = classes``). With an untrained head, the first rounds distort the features before the head fits them
(Kumar et al. 2022); a linear discriminant on frozen features avoids this (FedNCM; Legate et al. 2023).
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from functools import partial
from statistics import median

from flwr.serverapp import Grid

from hyperlora.messages.inputs import InputsReply, InputsRequest, widest
from models.adapters.adapter import Adapter
from models.adapters.input_moments import common_start
from models.adapters.rank_budget import NO_WORTH, Worth
from models.personalization.class_statistics import bounded, discriminant, mean_by_class, pooled_covariance
from models.personalization.head_generator import RIDGE, SCALES, believed
from strategies.engine.preparation import Preparation
from strategies.engine.records import RoundRecord
from strategies.engine.requests import RequestMaker
from strategies.federation.registrar import Registrar
from strategies.federation.roster import FederationError
from strategies.federation.transport import Exchange

log = logging.getLogger(__name__)
SCATTER_RANK, MOST_TRYING = 16, 16
"""Rank of the scatter within classes that clients tell, and clients that try heads."""
COARSE = 2
"""Of the scales that many is one that is tried: each is an adapter to send to every client that tries."""
ROWS_PER_RANK = 4
"""Rows of each covariance that a client sends for each rank of the adapter."""


def start_from_data(fresh: Adapter, requests: RequestMaker, grid: Grid, record: RoundRecord) -> tuple[Adapter, Worth]:
    """Return the start that the run's settings ask for, and what its components are worth under a budget of bytes.

    Args:
        fresh: the adapter that it is made of; returned itself where nothing is to be made of data.
        requests: whose registrar and settings say who is asked, and what.
        grid: sends the messages.
        record: of round 1; has their seconds, bytes and failures afterwards.

    Raises:
        FederationError: nobody answered.
    """
    began, start, worth, settings = time.perf_counter(), fresh, NO_WORTH, requests.settings
    if settings.start == "eva":
        start, worth = start_from_inputs(start, requests.registrar, grid, record, timeout=settings.round_timeout)
        record.add_seconds("inputs", time.perf_counter() - began)
    if settings.head_start == "classes":
        training = {name: card for name, card in requests.registrar.roster.reachable().items() if card.trains}
        start = start_from_classes(start, Preparation(requests, training, grid, record), settings.seed)
    return start, worth


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


def start_from_classes(start: Adapter, preparation: Preparation, seed: int) -> Adapter:
    """Return ``start`` with a linear discriminant as its head, scaled by the factor that works best for clients.

    Some clients try every factor, including 0, on their validation split. The factor with the lowest median loss is
    taken, where each client's losses count relative to its own loss with factor 0. Clients with implausible statistics
    (:mod:`models.personalization.plausible`) do not enter the discriminant.

    Args:
        start: what clients would begin with.
        preparation: asks those that train.
        seed: of who tries.

    Raises:
        FederationError: nobody answered.
    """
    told = preparation.statistics(start, SCATTER_RANK)
    if not told:
        raise FederationError("lora.head-start is classes, and no client told what its classes look like")
    parts = bounded(list(told.values()))
    try:
        parts = [parts[one] for one in believed(parts)]
        head = discriminant(mean_by_class(parts), pooled_covariance(parts, RIDGE).double())
    except (ValueError, RuntimeError) as error:
        log.warning("the head starts at zero: %s", error)
        return start
    tried = {f"{factor:g}": replace(start, head=factor * head) for factor in (0.0, *SCALES[::COARSE])}
    asked = random.Random(f"head start:{seed}").sample(sorted(told), min(MOST_TRYING, len(told)))
    losses = preparation.losses(dict.fromkeys(asked, tried)).values()
    worth = {name: median([one[name] - one["0"] for one in losses]) for name in tried} if losses else {"0": 0.0}
    return tried[min(worth, key=worth.__getitem__)]
