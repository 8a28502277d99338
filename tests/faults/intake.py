"""Mutated messages handed to who takes them in: a refused one changes nothing, any other leaves a finite state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.local_grid import LocalGrid
from client_app import handlers
from client_app.handlers import app_around
from client_app.runtime import ClientRuntime
from hyperlora.config.schema import RunConfig
from hyperlora.messages.batch import EvaluateBatch
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.signature import SignatureRequest
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.sums import SumRequest
from hyperlora.messages.train import TrainRequest
from strategies.engine.strategy import LoraStrategy
from strategies.federation.roster import FederationError
from tests.builders import fake_client_app
from tests.faults.clients import CARDS, NAMES, SETTINGS, logged, make_strategy
from tests.faults.mutation import mutate
from tests.faults.records import FRESH, Decoder, decoders
from tests.faults.table import Row
from tests.trees import same, tensors_in

REPLIES = {
    "train replies": TrainRequest.TYPE,
    "cards": SignatureRequest.TYPE,
    "class statistics": StatisticsRequest.TYPE,
    "scores": EvaluateBatch.TYPE,
}
"""What a server takes in, by the type of the message that it answers."""
NODES = 3


def intake_rows(tries: int, seed: int = 0) -> Iterator[Row]:
    """Hand each kind of reply to a server, and requests to a client, ``tries`` mutated ones in all."""
    share = max(1, tries // (len(REPLIES) + 1))
    for name, message_type in REPLIES.items():
        yield server_row(name, message_type, share, random.Random(seed))
    yield client_row(share, random.Random(seed))


class MutatingGrid(LocalGrid):
    """Mutates replies of one type to messages of one node, and counts them."""

    struck, chance, count = "", random.Random(0), 0

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if message.metadata.message_type == self.struck and message.metadata.dst_node_id == 1:
            mutate(reply.content, self.chance)
            self.count += 1
        return reply


def server_row(name: str, message_type: str, tries: int, chance: random.Random) -> Row:
    """Make a round, an evaluation in it, again and again while one node's replies of a type are mutated."""
    wrong, refused, count = "", 0, 0
    with logged():
        while count < tries:
            grid = MutatingGrid(fake_client_app(CARDS), {}, NODES, remembers=False)
            grid.struck, grid.chance = message_type, chance
            strategy = make_strategy(SETTINGS)
            reason = _objection_to(strategy, grid)
            refused += bool(strategy.record.failures or strategy.roster.left_out)
            wrong, count = wrong or reason, count + grid.count
    seen = wrong or f"{refused} rounds refused some, all left a finite state"
    expected = "what is refused changes nothing of the others, the state stays finite"
    return Row(f"mutated {name} handed to a server", expected, seen, not wrong, count)


def _objection_to(strategy: LoraStrategy, grid: LocalGrid) -> str:
    """Return what is wrong with how a strategy took in a round's replies; nothing: empty."""
    try:
        strategy.start(grid, num_rounds=1)
    except FederationError:
        return ""  # too few clients are left, in one sentence
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    others = [name for index, name in enumerate(NAMES) if index % NODES]
    known = {card.client_id: card for card in CARDS}
    if not all(same(strategy.roster.cards[name], known[name]) for name in others):
        return "the card of an honest client changed"
    served = [adapter for _, adapter in strategy.final_adapters().values()]
    finite = all(bool(torch.isfinite(one.float()).all()) for one in tensors_in([strategy.state, served]))
    return "" if finite else "NaN in the state or in what clients are sent"


class _ReachedError(Exception):
    """The request was sound: the client would begin to compute."""


def client_row(tries: int, chance: random.Random) -> Row:
    """Hand mutated requests to a client: refused by one sentence before anything is computed, or sound."""
    requests = [one for one in decoders() if one.name.partition(",")[0].endswith("Request")]
    app, wrong, refused = app_around(_runtime, lambda context: RunConfig()), "", 0
    with ExitStack() as tasks:
        for task in ("describe_classes", "describe_clients", "evaluate_adapter", "train_start"):
            tasks.enter_context(patch.object(handlers, task, _reached))
        for index in range(tries):
            context = Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})
            reason = _refusal(app, requests[index % len(requests)], context, chance)
            refused += reason == ""
            wrong = wrong or reason or ("a request changed what the node keeps" if context.state else "")
    seen = wrong or f"{refused} refused, the others sound"
    return Row("mutated requests handed to a client", "refused before anything is computed", seen, not wrong, tries)


def _reached(*given: object) -> None:
    raise _ReachedError


def _runtime(context: Context, fingerprint: str) -> ClientRuntime:
    """Return what the handlers look at before they begin to compute."""
    model = SimpleNamespace(fresh_adapter=lambda seed: FRESH, backbone=SimpleNamespace(fingerprint="abc"))
    made = SimpleNamespace(model=model, config=RunConfig(), federation=SimpleNamespace(client_ids=("a",)))
    return cast(ClientRuntime, made)


def _refusal(app: ClientApp, decoder: Decoder, context: Context, chance: random.Random) -> str | None:
    """Return None for a sound request, nothing for one that was refused, else what is wrong."""
    content = decoder.encode()
    mutate(content, chance)
    kind = TYPES[decoder.name.partition(",")[0]]
    try:
        app(Message(content, dst_node_id=1, message_type=kind), context)
    except _ReachedError:
        return None
    except ProtocolError as error:
        return "" if str(error) else "no sentence"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "a request was answered without a computation"


TYPES = {one.__name__: one.TYPE for one in (TrainRequest, SignatureRequest, StatisticsRequest, SumRequest)}
TYPES["EvaluateRequest"] = EvaluateBatch.TYPE
