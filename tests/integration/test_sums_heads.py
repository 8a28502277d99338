"""Heads of a run of sums: what is published is what clients find best, and is made of what the clients would tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.sums_only import Clients, start_from_sums
from client_app.runtime import open_runtime
from client_app.sum_steps import answer_or_zeros
from client_app.sums import SummedClient
from client_app.tasks import NothingKept, describe_classes, evaluate_adapter
from hyperlora.config.schema import RunConfig
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.questions import Question, layout, public_anchor
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.sums import SumRequest
from hyperlora.secure_sum.fixed_point import FixedPoint
from models.personalization.class_statistics import discriminant, mean_by_class, pooled_covariance
from models.personalization.head_generator import RIDGE, SCALES, at_scale
from strategies.engine.checkpoint import CheckpointStore
from strategies.methods.registry import build_method
from tests.sums_runs import Recording, made


def test_the_published_mixture_is_that_of_least_loss_over_the_starts_that_clients_make(
    sums_run: tuple[Path, Recording],
) -> None:
    config = RunConfig.parse(json.loads((sums_run[0] / "config.json").read_text()))
    found = CheckpointStore(sums_run[0] / "checkpoints", keep=1).latest(build_method(config).state_classes)
    assert found is not None
    public, runtime = found.state.published, open_runtime(config)
    names = [name for name in runtime.federation.client_ids if runtime.client(name).trains]
    clients = {name: SummedClient(runtime, SumRequest(name, 2, "", "masked"), NothingKept()) for name in names}
    mixtures = [(0.0, 1.0), *(at_scale(0.5, 0.5, factor) for factor in SCALES)]
    questions = [Question("losses", {**public, "mixture": torch.tensor(one)}) for one in mixtures]
    told = [
        torch.cat([answer["anchor"], answer["own"]]) for answer in (c.answer(questions[1]) for c in clients.values())
    ]
    least = int(torch.stack(told).sum(dim=0).argmin())
    assert found.state.published["mixture"].tolist() == pytest.approx(mixtures[least])
    for index in (0, 1, 5):
        start = Start(clients[names[0]].own_start(questions[index]))
        scored = EvaluateRequest(names[0], 2, [0], start, validation_only=True)
        loss = evaluate_adapter(runtime, scored, NothingKept()).validation_loss[0]
        assert float(told[0][index]) == pytest.approx(loss, abs=1e-4)


def test_the_head_starts_as_the_discriminant_of_all_classes_and_is_told_as_a_sum(tmp_path: Path) -> None:
    directory, grid = made(tmp_path / "run", **{"lora.head-start": "classes", "federation.rounds": 1})
    config = RunConfig.parse(json.loads((directory / "config.json").read_text()))
    sent = [SumRequest.decode(one.content) for one in grid.sent if one.metadata.message_type == "query.sum"]
    start = next(one.question.anchor for one in sent if one.question and one.question.kind == "movement of B")
    runtime = open_runtime(config.with_values({"privacy.mode": "open"}))
    fresh = runtime.model.fresh_adapter(config.seed)
    training = [name for name in runtime.federation.client_ids if runtime.client(name).trains]
    requests = [StatisticsRequest(name, 1, 64, Start(fresh)) for name in training]
    parts = [describe_classes(runtime, one, NothingKept()).statistics for one in requests]
    whole = discriminant(mean_by_class(parts), pooled_covariance(parts, RIDGE).double())
    factor = float((start.head * whole).sum() / whole.square().sum())
    torch.testing.assert_close(start.head, factor * whole, rtol=0, atol=0.05 * float(factor * whole.abs().max()))
    assert min(abs(factor / one - 1) for one in SCALES) < 0.05
    in_the_open = start_from_sums(Clients.of(runtime)).head
    torch.testing.assert_close(start.head, in_the_open, rtol=0, atol=0.01 * float(in_the_open.abs().max()))


def test_a_public_head_that_makes_losses_overflow_for_some_does_not_show_for_whom(
    sums_run: tuple[Path, Recording],
) -> None:
    config = RunConfig.parse(json.loads((sums_run[0] / "config.json").read_text()))
    runtime = open_runtime(config)
    anchor = runtime.model.fresh_adapter(config.seed)
    question = Question("head losses", public_anchor(replace(anchor, head=torch.full_like(anchor.head, 1e38))))
    name = runtime.federation.client_ids[0]
    client = SummedClient(runtime, SumRequest(name, 1, "", "masked", clients=5), NothingKept())
    assert not client.answer(question)["losses"].isfinite().all()
    form = layout(question, client.sizes())
    assert isinstance(form, FixedPoint)
    assert not form.encode(answer_or_zeros(client, question, form.parts)).any()
