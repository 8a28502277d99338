"""Clients that fail in a round: each costs its own contribution, the log names it, and nothing else changes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flwr.app import Error, Message

from benchmarks.faulty_grid import Call, Fault, FaultyGrid, anothers, late, not_finite, raises, silent, wrong_shape
from benchmarks.local_grid import CLIENT_ERROR
from hyperlora.config.schema import RunConfig
from hyperlora.messages.train import TrainRequest
from strategies.engine.records import RoundRecord
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.federation.registrar import Registrar
from strategies.federation.roster import FederationError
from strategies.methods.registry import build_method
from tests.builders import CLASSES, SIGNATURE_SIZE, fake_client_app, make_adapter, make_card
from tests.faults.table import Row
from tests.trees import same

CARDS = [make_card(f"client-{index}", trains=index < 6) for index in range(8)]
NAMES = [card.client_id for card in CARDS]
SETTINGS = RoundSettings(4, 10, (0, 10), 1, 0, min_clients=8, join_timeout=0.2, round_timeout=5.0)
ROUNDS, STRUCK = 3, 2
CRASHED = 8
"""Flower's code for a ClientApp whose process is gone."""


def killed(call: Call) -> Message:
    """The process that trains is killed in the middle of it."""
    child = os.fork()
    if not child:
        while True:
            call.answer()
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    reason = f"the ClientApp was ended by signal {os.WTERMSIG(status)}"
    return Message(Error(code=CRASHED, reason=reason), reply_to=call.message)


def claims_many(call: Call) -> Message:
    """The reply says that it was trained on 10^18 samples."""
    answer = call.answer()
    answer.content["metrics"]["num_examples"] = 10**18  # type: ignore[index]
    return answer


def forges(call: Call) -> Message:
    """The reply holds five million characters that would look like lines of the server's log."""
    answer = call.answer()
    answer.content["config"]["client_id"] = "\n\x1b[2JWARNING all is well" + "x" * 5_000_000  # type: ignore[index]
    return answer


FAULTS: dict[str, tuple[Fault, str]] = {
    "raises": (raises, "the client's sensor is broken (error code 2)"),
    "returns NaN": (not_finite, "holds NaN, infinity or other data than it declares"),
    "returns an adapter of another shape": (wrong_shape, "expected float32"),
    "returns another client's adapter": (anothers, "expected client"),
    "claims 10^18 samples": (claims_many, "it trained on 1000000000000000000 samples and has 10"),
    "forges lines of the log": (forges, "expected client"),
    "is killed mid-training": (killed, "ended by signal 9 (error code 8)"),
    "never answers": (silent, "no reply within the time limit"),
    "answers after the deadline": (late, "no reply within the time limit"),
}


SILENT = (killed, silent, late)
"""Faults after which nothing is heard of the client's node."""


def client_rows() -> Iterator[Row]:
    """Try every fault on one client, then on all of a round, then too few clients and too few replies."""
    victim = made(lambda message: None)[1][STRUCK - 1].cohort[-1]
    references = {heard: undisturbed(heard) for heard in (True, False)}
    for name, (fault, sentence) in FAULTS.items():
        yield one_client(name, fault, sentence, victim, references[fault not in SILENT])
    yield all_clients()
    yield few_replies()
    yield few_clients()


def one_client(name: str, fault: Fault, sentence: str, victim: str, reference: LoraStrategy) -> Row:
    with logged() as lines:
        strategy, records = made(lambda message: fault if struck(message, victim) else None)
    reason = records[STRUCK - 1].failures.get(f"train {victim}", "nothing is named")
    warning = f"round {STRUCK}: train of client '{victim}' is left out: {reason}"
    trains = [sum(who.startswith("train ") for who in record.failures) for record in records]
    alone = trains == [0, 1, 0] and all(who.endswith(victim) for record in records for who in record.failures)
    seen = f"{reason}{'' if (same := same_state(strategy, reference)) else '; ANOTHER STATE'}"
    expected = "left out and named in the log and the metrics; the rest is as without its reply"
    return Row(f"a client {name}", expected, seen, sentence in reason and alone and same and warning in lines)


def all_clients() -> Row:
    with logged() as lines:
        strategy, records = made(lambda message: raises if struck(message) else None, rounds=STRUCK)
    before, _ = made(lambda message: None, rounds=STRUCK - 1)
    same, count = same_state(strategy, before), len(records[STRUCK - 1].failures)
    warning = f"round {STRUCK} changes nothing: 0 of 4 clients sent a reply that can be used"
    seen = f"{count} named, the state is {'the same' if same else 'ANOTHER'}"
    expected = "all are named, the state is that of the round before, the run goes on"
    return Row("all clients of a round fail", expected, seen, same and count == 4 and warning in lines)


def few_replies() -> Row:
    settings = replace(SETTINGS, min_replies=4)
    cohort = made(lambda message: None)[1][STRUCK - 1].cohort
    with logged() as lines:
        strategy, records = made(lambda message: silent if struck(message, cohort[0]) else None, STRUCK, settings)
    before, _ = made(lambda message: None, rounds=STRUCK - 1)
    reason, same = records[STRUCK - 1].failures.get("round", "nothing is named"), same_state(strategy, before)
    passed = same and "federation.min-replies is 4" in reason and any("changes nothing: 3 of 4" in one for one in lines)
    return Row("fewer replies than the quorum", "named; the round changes nothing; the run goes on", reason, passed)


def few_clients() -> Row:
    try:
        made(lambda message: None, settings=replace(SETTINGS, min_clients=9))
        seen = "the run began"
    except FederationError as error:
        seen = str(error)
    expected = "the run ends with a sentence that has both numbers"
    return Row(
        "fewer clients than the quorum", expected, seen, seen == "expected 9 clients within 0.2 s, 8 can take part"
    )


def struck(message: Message, victim: str | None = None) -> bool:
    """Tell whether a message asks ``victim`` (or anybody) to train in the round that is to be struck."""
    if message.metadata.message_type != TrainRequest.TYPE:
        return False
    config: Any = message.content["config"]
    return config["server_round"] == STRUCK and victim in (None, config["client_id"])


def made(
    choose: Callable[[Message], Fault | None], rounds: int = ROUNDS, settings: RoundSettings = SETTINGS
) -> tuple[LoraStrategy, list[RoundRecord]]:
    """Run rounds with all of HyperLoRA's modules on small adapters."""
    strategy, records = make_strategy(settings), []
    strategy.start(
        FaultyGrid(fake_client_app(CARDS), {}, len(CARDS), choose), num_rounds=rounds, on_round=records.append
    )
    return strategy, records


def undisturbed(heard: bool) -> LoraStrategy:
    """Run the rounds by hand, and take the victim's reply away before the strategy sees the replies.

    A node that is ``heard`` sends an error in its place; one that is not is asked less and less.
    """
    strategy = make_strategy(SETTINGS)
    grid = FaultyGrid(fake_client_app(CARDS), {}, len(CARDS), lambda message: None)
    strategy.join(grid)
    for server_round in range(1, ROUNDS + 1):
        messages = strategy.configure_train(server_round, None, None, grid)  # type: ignore[arg-type]
        replies = list(grid.send_and_receive(messages))
        if server_round == STRUCK:
            error = Error(code=CLIENT_ERROR, reason="taken away")
            replies[-1:] = [Message(error, reply_to=messages[-1])] if heard else []
        strategy.aggregate_train(server_round, replies)
        strategy.configure_evaluate(server_round, None, None, grid)  # type: ignore[arg-type]
    return strategy


def make_strategy(settings: RoundSettings) -> LoraStrategy:
    method = build_method(RunConfig.parse({"generator.hidden": 8, "generator.rank": 3, "corrector.rank": 2}))
    registrar = Registrar("fingerprint", SIGNATURE_SIZE, CLASSES)
    return LoraStrategy(method, initial=make_adapter(0, fresh=True), registrar=registrar, settings=settings)


def same_state(one: LoraStrategy, other: LoraStrategy) -> bool:
    """Tell whether two states are equal to the last bit, and all that is known of the clients is."""
    cards = all(
        card.signature.digest() == other.roster.cards[name].signature.digest()
        for name, card in one.roster.cards.items()
    )
    return cards and same(one.state, other.state)


@contextmanager
def logged() -> Iterator[list[str]]:
    """Yield the warnings that the strategy logs meanwhile."""
    lines: list[str] = []
    handler, log = logging.Handler(logging.WARNING), logging.getLogger("strategies")
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
