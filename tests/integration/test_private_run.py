"""A run with noise: what leaves its clients is noised and counted, or not released; nothing is an exact function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from benchmarks.local_grid import LocalGrid
from client_app.app import app
from client_app.privacy import private
from client_app.runtime import HIDDEN_EXAMPLES, ClientRuntime, open_runtime
from client_app.site import Site
from client_app.tasks import (
    NothingKept,
    describe_classes,
    describe_clients,
    describe_inputs,
    evaluate_adapter,
    train_start,
)
from hyperlora.config.schema import RunConfig
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.inputs import InputsRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import SignatureReply
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.train import TrainReply, TrainRequest
from hyperlora.noise import Draw, secret_noise
from models.personalization.signature import private_signature
from server_app.run import run

PRIVATE: dict[str, Any] = {
    "privacy.signature-noise": 2.0,
    "privacy.adapter-noise": 8.0,
    "privacy.adapter-clip": 1e-3,
    "data.clients-per-domain": 1,
    "data.unseen-fraction": 0.0,
    "federation.clients-per-round": 4,
    "federation.rounds": 2,
    "federation.evaluate-every": 1,
}
EXACT = {"privacy.exact-figures": True}


class ListeningGrid(LocalGrid):
    """A LocalGrid that keeps what the clients answer."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(app, values, 4)
        self.replies: list[Message] = []

    def _answer(self, message: Message) -> Message:
        self.replies.append(super()._answer(message))
        return self.replies[-1]


def test_no_reply_of_a_private_run_holds_an_exact_figure(tmp_path: Path) -> None:
    own = {"hyperlora.deviations": "rounds", "run.output-dir": str(tmp_path / "run")}  # which would be probed
    values = RunConfig.parse({**PRIVATE, **own}).flat()
    grid = ListeningGrid(values)
    directory = run(grid, values)
    told: dict[str, list[Any]] = {}
    for reply in grid.replies:
        for name, value in (entry for record in reply.content.metric_records.values() for entry in record.items()):
            told.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    kinds = {message.metadata.message_type for message in grid.sent}
    assert kinds == {"query.signature", "train", "evaluate"}
    assert set(told.pop("num_examples")) == {HIDDEN_EXAMPLES}
    assert max(told.pop("seconds")) > 0
    assert {name: set(numbers) for name, numbers in told.items()} == {name: {0.0} for name in told}
    assert {"num_test", "test_accuracy", "test_loss", "validation_loss", "train_loss"} <= set(told)
    assert not {"class_samples", "class_hits"} & set(told)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["evaluation"] for line in lines] == [{}, {}]
    assert [line["training"] for line in lines] == [{"clients": 4}, {"clients": 4}]
    assert [line["failures"] for line in lines] == [{}, {}]
    assert "probe_up" not in lines[0]["bytes"]
    assert json.loads((directory / "evaluation.json").read_text()) == []


def runtime_with(values: dict[str, Any]) -> ClientRuntime:
    return open_runtime(RunConfig.parse({**PRIVATE, **values}))


def replies(runtime: ClientRuntime, client_id: str) -> tuple[SignatureReply, TrainReply, EvaluateReply]:
    start = Start(runtime.model.fresh_adapter(0))
    trained = train_start(runtime, TrainRequest(client_id, 1, 2, start), NothingKept())
    scored = evaluate_adapter(runtime, EvaluateRequest(client_id, 1, [0, 2], start), NothingKept())
    return describe_clients(runtime, [client_id]), trained, scored


def test_what_a_client_tells_does_not_follow_from_how_many_samples_it_has() -> None:
    runtime = runtime_with({})
    name = runtime.federation.client_ids[0]
    described, trained, scored = replies(runtime, name)
    (card,) = described.cards
    assert len(runtime.client(name).train) != HIDDEN_EXAMPLES
    assert card.num_examples == trained.metrics.num_examples == HIDDEN_EXAMPLES
    assert card.signature.log_num_examples == pytest.approx(torch.tensor(100.0).log().item())
    assert scored.num_test == 0


def test_exact_figures_are_told_where_a_simulation_asks_for_them() -> None:
    runtime = runtime_with(EXACT)
    name = runtime.federation.client_ids[0]
    described, trained, scored = replies(runtime, name)
    assert described.cards[0].num_examples == len(runtime.client(name).train) == trained.metrics.num_examples
    assert trained.metrics.train_loss > 0
    assert scored.num_test == len(runtime.client(name).test)


def test_a_changed_signature_of_a_private_run_tells_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_with({})
    name = runtime.federation.client_ids[0]
    start = Start(runtime.model.fresh_adapter(0))
    reply = train_start(runtime, TrainRequest(name, 1, 1, start, signature_digest="another"), NothingKept())
    assert reply.signature is not None
    assert round(float(torch.tensor(reply.signature.log_num_examples).exp())) == HIDDEN_EXAMPLES
    again = replace(runtime, config=runtime.config.with_values({"privacy.exact-figures": True}))
    assert again.signature(name).digest() != reply.signature.digest()


def test_what_a_server_asks_without_noise_stays_at_the_client_of_a_private_run() -> None:
    runtime = runtime_with(EXACT)
    name, start = runtime.federation.client_ids[0], Start(runtime.model.fresh_adapter(0))
    with pytest.raises(ProtocolError, match="class statistics carry no noise"):
        describe_classes(runtime, StatisticsRequest(name, 1, 4, start), NothingKept())
    with pytest.raises(ProtocolError, match="moments of inputs carry no noise"):
        describe_inputs(runtime, InputsRequest(name, 1, 4))


def test_what_leaves_a_site_is_noised_by_the_operating_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Draw] = []

    def noted(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **how: drawn.append(how["draw"]) or make(*given, **how)

    monkeypatch.setattr("client_app.tasks.private", noted(private))
    monkeypatch.setattr("client_app.runtime.private_signature", noted(private_signature))
    runtime = open_runtime(RunConfig.parse(PRIVATE), Site(client_id="clean-0", state_dir=str(tmp_path)))
    train_start(runtime, TrainRequest("clean-0", 1, 1, Start(runtime.model.fresh_adapter(0))), NothingKept())
    assert drawn == [secret_noise, secret_noise]  # of the signature and of the adapter
