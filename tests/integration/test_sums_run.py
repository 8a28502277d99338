"""A run of sums on digits through the real ServerApp and ClientApp, in this process: what the server is handed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message
from peft import PeftModel

from benchmarks.local_grid import LocalGrid
from benchmarks.sums_only import Clients, one_factor
from client_app.app import app
from client_app.runtime import open_runtime
from client_app.site import clients_of
from client_app.sums import SummedClient
from client_app.tasks import NothingKept
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.data.digits import digits_public
from hyperlora.messages.plan import Start
from hyperlora.messages.questions import Question, layout, public_anchor
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.sums import SumRequest
from hyperlora.messages.train import TrainRequest
from models.adapters.adapter import subtract
from models.backbones.backbone import Backbone
from models.backbones.loading import build_backbone
from models.lowrank.factors import norm
from models.sums.shared_factor import STEP
from server_app.run import run
from strategies.engine.checkpoint import CheckpointStore
from strategies.engine.history import sample_cohort
from strategies.methods.registry import build_method
from tests.sums_runs import CLIENTS, SUMS, Recording, made, records, without_times


def fresh_backbone() -> Backbone:
    model = RunConfig().model
    return build_backbone(
        name=model.name, weights="", image_size=model.image_size, num_classes=10, pretraining=digits_public
    )


def test_the_server_is_handed_masked_vectors_and_keys_only(sums_run: tuple[Path, Recording]) -> None:
    _, grid = sums_run
    steps = set()
    for reply in grid.replies:
        config = reply.content["config"]
        assert isinstance(config, ConfigRecord)
        if reply.metadata.message_type == "query.signature":
            continue
        assert reply.metadata.message_type == "query.sum"
        steps.add(config["step"])
        arrays = reply.content.get("arrays")
        assert (arrays is not None) == (config["step"] == "masked")
    assert steps == {"keys", "shares", "masked", "agree", "unmask"}


def test_a_masked_vector_is_not_what_the_client_tells(sums_run: tuple[Path, Recording]) -> None:
    _, grid = sums_run
    runtime = open_runtime(RunConfig.parse(SUMS))
    masked = [one for one in grid.replies if step_of(one) == ("masked", "moments")]
    for reply in masked:
        vector = reply.content["arrays"]["masked"].numpy()  # type: ignore[index]
        client = str(reply.content["config"]["client_id"])  # type: ignore[index]
        request = SumRequest(client, 2, "", "masked", clients=len(masked), question=Question("moments", {}))
        one = SummedClient(runtime, request, NothingKept())
        plain = layout(request.question, one.sizes()).encode(one.answer(request.question))  # type: ignore[arg-type]
        assert (vector[: len(plain)] != plain).mean() > 0.99
    assert len(masked) >= 3


def step_of(reply: Message) -> tuple[str, str]:
    config = reply.content["config"]
    assert isinstance(config, ConfigRecord)
    return str(config.get("step", "")), str(config.get("name", "")).rpartition(".")[2]


def test_clients_tell_the_same_card_but_for_their_name(sums_run: tuple[Path, Recording]) -> None:
    _, grid = sums_run
    vectors = [
        array.numpy()
        for reply in grid.replies
        if reply.metadata.message_type == "query.signature"
        for array in reply.content["arrays"].values()  # type: ignore[union-attr]
    ]
    assert len(vectors) == CLIENTS
    assert all(np.array_equal(one, vectors[0]) for one in vectors)


def test_it_learns_and_is_scored_by_groups(sums_run: tuple[Path, Recording]) -> None:
    directory, _ = sums_run
    last = records(directory)[-1]
    assert last["evaluation"]["seen"]["zero_step"]["mean"] > 0.5
    scores = json.loads((directory / "evaluation.json").read_text())
    assert {one["client_id"] for one in scores} <= {"unseen", *(f"group-{index}" for index in range(1, 17))}


def test_adapters_of_groups_load_with_peft(sums_run: tuple[Path, Recording]) -> None:
    directory, _ = sums_run
    adapters = sorted(path.name for path in (directory / "adapters").iterdir())
    assert "anchor" in adapters
    for name in adapters:
        PeftModel.from_pretrained(fresh_backbone().module, str(directory / "adapters" / name))


@pytest.mark.usefixtures("metrics_alone")
def test_the_same_seed_gives_the_same_run(sums_run: tuple[Path, Recording], tmp_path: Path) -> None:
    directory, _ = sums_run
    assert without_times(made(tmp_path / "again")[0]) == without_times(directory)


@pytest.mark.usefixtures("metrics_alone")
def test_a_stopped_run_goes_on_as_if_it_had_not_been(sums_run: tuple[Path, Recording], tmp_path: Path) -> None:
    directory, _ = sums_run
    made(tmp_path / "run", **{"federation.rounds": 1})
    values = RunConfig.parse({**SUMS, "run.output-dir": str(tmp_path / "run"), "run.resume": True}).flat()
    run(LocalGrid(app, values, CLIENTS), values)
    ends = [
        one["evaluation"]["seen"]["zero_step"]["mean"]
        for one in (records(directory)[-1], records(tmp_path / "run")[-1])
    ]
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


@pytest.mark.parametrize("step", ["shares", "masked", "agree", "unmask"])
@pytest.mark.usefixtures("metrics_alone")
def test_a_client_that_breaks_off_costs_its_own_part(step: str, tmp_path: Path) -> None:
    directory, grid = made(tmp_path / "run", (first_of_the_cohort(), step), **{"federation.rounds": 1})
    record = records(directory)[0]
    assert record["training"]["clients"] == (5 if step in ("agree", "unmask") else 4)
    assert any(first_of_the_cohort() in name for name in record["failures"])
    assert record["evaluation"]["seen"]["zero_step"]["mean"] > 0.3
    assert grid.replies


@pytest.mark.usefixtures("metrics_alone")
def test_a_client_that_seals_nonsense_costs_its_own_part(tmp_path: Path) -> None:
    liar = first_of_the_cohort()

    def answer(message: Message, context: Context) -> Message:
        reply, config = app(message, context), message.content["config"]
        assert isinstance(config, ConfigRecord)
        if (config.get("client_id"), config.get("step")) == (liar, "shares"):
            told = reply.content["config"]
            assert isinstance(told, ConfigRecord)
            told["body"] = json.dumps(dict.fromkeys(json.loads(str(told["body"])), "00"))
        return reply

    values = RunConfig.parse({**SUMS, "federation.rounds": 1, "run.output-dir": str(tmp_path / "run")}).flat()
    record = records(run(LocalGrid(answer, values, CLIENTS), values))[0]
    assert record["training"]["clients"] == 4
    assert f"what hides '{liar}'" in record["failures"][f"sum {liar}"]
    assert record["evaluation"]["seen"]["zero_step"]["mean"] > 0.3


@pytest.mark.usefixtures("metrics_alone")
def test_a_client_that_was_given_other_settings_is_in_no_sum(tmp_path: Path) -> None:
    values = RunConfig.parse({**SUMS, "federation.rounds": 1, "run.output-dir": str(tmp_path / "run")}).flat()
    grid, odd = LocalGrid(app, values, CLIENTS), first_of_the_cohort()
    for context in grid._contexts.values():
        names = clients_of(context.node_config, open_runtime(RunConfig.parse(SUMS)).federation.client_ids)
        if names == [odd]:
            context.run_config = {**values, "train.local-steps": 0}
    record = records(run(grid, values))[0]
    assert record["training"]["clients"] == 4
    assert "what it answers" in record["failures"][f"sum {odd}"]


def first_of_the_cohort() -> str:
    runtime, config = open_runtime(RunConfig.parse(SUMS)), RunConfig.parse(SUMS)
    names = [name for name in runtime.federation.client_ids if runtime.client(name).trains]
    return sample_cohort(names, 5, seed=config.seed, server_round=1)[0]


def test_the_anchor_moves_by_what_the_same_clients_make_of_one_factor(sums_run: tuple[Path, Recording]) -> None:
    config = RunConfig.parse(json.loads((sums_run[0] / "config.json").read_text()))
    found = CheckpointStore(sums_run[0] / "checkpoints", keep=1).latest(build_method(config).state_classes)
    assert found is not None
    clients = Clients.of(open_runtime(config.with_values({"privacy.mode": "open"})))
    initial = anchor = clients.runtime.model.fresh_adapter(config.seed)
    for server_round in (1, 2):
        anchor = one_factor(STEP)(clients, initial, anchor, server_round)
    apart = subtract(found.state.anchor, anchor)
    for kind, one in apart.low_rank.items():
        assert bool((norm(one) < 0.02 * norm(anchor.low_rank[kind])).all())
    torch.testing.assert_close(found.state.anchor.head, anchor.head, rtol=0, atol=2e-3)


def asked(values: dict[str, Any], message: Message) -> Message:
    grid = LocalGrid(app, RunConfig.parse(values).flat(), 1)
    return next(iter(grid.send_and_receive([message])))


def open_messages() -> Iterator[Message]:
    runtime = open_runtime(RunConfig.parse(SUMS))
    name, start = runtime.federation.client_ids[0], Start(runtime.model.fresh_adapter(0))
    for request in (StatisticsRequest(name, 1, 4, start), TrainRequest(name, 1, 1, start, "", False)):
        yield Message(content=request.encode(), dst_node_id=1, message_type=request.TYPE)


def test_a_client_of_a_run_of_sums_answers_nothing_else() -> None:
    for message in open_messages():
        reply = asked(SUMS, message)
        assert reply.has_error()
        assert "the run is one of sums" in (reply.error.reason or "")


def test_a_client_of_an_open_run_answers_no_step_of_a_sum() -> None:
    name = open_runtime(RunConfig.parse(SUMS)).federation.client_ids[0]
    request = SumRequest(name, 1, "one", "keys")
    reply = asked({**SUMS, "privacy.mode": "open"}, Message(request.encode(), 1, request.TYPE))
    assert reply.has_error()
    assert "the run is an open one" in (reply.error.reason or "")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"method": "fedit"}, "made by method = hyperlora"),
        ({"privacy.signature-noise": 1.0}, "privacy.signature-noise"),
        ({"lora.start": "eva"}, "lora.start"),
        ({"federation.clients-per-round": 4}, "no round would have a sum"),
        ({"lora.budget": "10k"}, "lora.budget"),
        ({"federation.domain-rounds": 2}, "federation.domain-rounds"),
        ({"hyperlora.deviations": "rounds"}, "hyperlora.deviations"),
        ({"hyperlora.statistics": False}, "hyperlora.statistics"),
    ],
)
def test_what_does_not_go_with_sums_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        RunConfig.parse({"privacy.mode": "sums", **values})


def test_an_anchor_of_another_shape_is_refused() -> None:
    runtime = open_runtime(RunConfig.parse(SUMS))
    wrong = runtime.model.fresh_adapter(0).truncated(2)
    request = SumRequest("any", 1, "", "masked", clients=5, question=Question("movement of B", public_anchor(wrong)))
    with pytest.raises(ValueError, match="does not fit"):
        SummedClient(runtime, request, NothingKept()).answer(request.question)  # type: ignore[arg-type]
