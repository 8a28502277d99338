"""A run that begins with what clients' inputs and classes make: asked once, of those that train, and sent to all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from client_app.runtime import open_runtime
from client_app.tasks import NothingKept, describe_classes, describe_inputs, evaluate_adapter
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.inputs import InputsRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.statistics import StatisticsRequest
from hyperlora.messages.train import TrainRequest
from models.adapters.adapter import Adapter
from models.adapters.input_moments import common_start
from models.personalization.class_statistics import (
    ClassStatistics,
    bounded,
    discriminant,
    mean_by_class,
    pooled_covariance,
)
from models.personalization.head_generator import RIDGE, SCALES, believed
from server_app.run import run
from strategies.engine.common_start import COARSE, SCATTER_RANK
from strategies.engine.preparation import Preparation

SMALL = {
    "method": "fedit",
    "federation.rounds": 2,
    "federation.clients-per-round": 2,
    "data.clients-per-domain": 2,
    "data.unseen-fraction": 0.5,
    "train.local-steps": 1,
}


def test_all_clients_begin_with_the_start_that_their_inputs_make(tmp_path: Path) -> None:
    config = RunConfig.parse({**SMALL, "lora.start": "eva", "run.output-dir": str(tmp_path / "run")})
    grid = LocalGrid(client_app, config.flat(), 2)
    directory = run(grid, config.flat())
    runtime = open_runtime(config)
    fresh = runtime.model.fresh_adapter(config.seed)
    questions = [
        InputsRequest.decode(one.content, fresh) for one in grid.sent if one.metadata.message_type == InputsRequest.TYPE
    ]
    training = [name for name in runtime.federation.client_ids if runtime.client(name).trains]
    assert sorted(one.client_id for one in questions) == training
    expected, _ = common_start(fresh, [describe_inputs(runtime, one).moments for one in questions])
    sent = [TrainRequest.decode(one.content, fresh) for one in grid.sent if one.metadata.message_type == "train"]
    for request in sent[:2]:
        for kind, factors in request.start.adapter.low_rank.items():
            torch.testing.assert_close(factors.A, expected.low_rank[kind].A, rtol=1e-4, atol=1e-5)
            assert not factors.B.any()
    rounds = [json.loads(line)["bytes"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [one.get("inputs_up", 0) > 0 for one in rounds] == [True, False]


def sent_heads(directory: Path, **values: str | float) -> tuple[list[str], list[Tensor]]:
    """Return who was asked for class statistics before round 1, and the heads that its cohort was sent."""
    config = RunConfig.parse({**SMALL, "lora.head-start": "classes", "run.output-dir": str(directory), **values})
    grid = LocalGrid(client_app, config.flat(), 2)
    run(grid, config.flat())
    fresh = open_runtime(config).model.fresh_adapter(config.seed)
    trained = [TrainRequest.decode(one.content, fresh) for one in grid.sent if one.metadata.message_type == "train"]
    asked = [StatisticsRequest.decode(one.content, fresh) for one in of_type(grid, StatisticsRequest.TYPE)]
    return sorted(one.client_id for one in asked), [one.start.adapter.head for one in trained[:2]]


def of_type(grid: LocalGrid, kind: str) -> list[Message]:
    return [one for one in grid.sent if one.metadata.message_type == kind]


def test_all_clients_begin_with_the_discriminant_of_their_classes_at_the_scale_of_least_loss(tmp_path: Path) -> None:
    asked, heads = sent_heads(tmp_path / "run")
    runtime = open_runtime(RunConfig.parse(SMALL))
    fresh = runtime.model.fresh_adapter(0)
    training = [name for name in runtime.federation.client_ids if runtime.client(name).trains]
    assert asked == training
    requests = [StatisticsRequest(name, 1, SCATTER_RANK, Start(fresh)) for name in training]
    parts = bounded([describe_classes(runtime, one, NothingKept()).statistics for one in requests])
    parts = [parts[one] for one in believed(parts)]
    whole = discriminant(mean_by_class(parts), pooled_covariance(parts, RIDGE).double())
    factor = float((heads[0] * whole).sum() / whole.square().sum())
    assert factor == pytest.approx(min(SCALES[::COARSE], key=lambda one: abs(one - factor)), rel=1e-3)
    for head in heads:
        torch.testing.assert_close(head, factor * whole, rtol=1e-3, atol=1e-4)

    def losses(scale: float) -> list[float]:
        start = Start(replace(fresh, head=scale * whole))
        tried = [EvaluateRequest(name, 1, [0], start, validation_only=True) for name in training]
        return [evaluate_adapter(runtime, one, NothingKept()).validation_loss[0] for one in tried]

    before = losses(0.0)
    apart = {one: median(a - b for a, b in zip(losses(one), before, strict=True)) for one in SCALES[::COARSE]}
    assert factor == pytest.approx(min(apart, key=apart.__getitem__), rel=1e-3)
    rounds = [json.loads(line)["bytes"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one.get("statistics_up", 0) > 0 for one in rounds] == [True, False]


def test_where_no_discriminant_is_better_than_none_the_head_starts_at_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(self: Preparation, starts: Mapping[str, Mapping[str, Adapter]]) -> dict[str, dict[str, float]]:
        return {name: {one: 1.0 + float(one) for one in tried} for name, tried in starts.items()}

    monkeypatch.setattr(Preparation, "losses", worse)
    _, heads = sent_heads(tmp_path / "run")
    assert not any(head.any() for head in heads)


def test_a_client_that_lies_about_its_classes_does_not_bend_the_head_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, liars = Preparation.statistics, list[str]()

    def lied(self: Preparation, anchor: Adapter, rank: int) -> dict[str, ClassStatistics]:
        told = asked(self, anchor, rank)
        return {name: replace(one, sums=-100.0 * one.sums) if name in liars else one for name, one in told.items()}

    monkeypatch.setattr(Preparation, "statistics", lied)
    names, honest = sent_heads(tmp_path / "honest", **{"data.clients-per-domain": 4})
    liars.append(names[0])
    _, bent = sent_heads(tmp_path / "bent", **{"data.clients-per-domain": 4})
    assert float(torch.cosine_similarity(honest[0].flatten(), bent[0].flatten(), dim=0)) > 0.8


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"privacy.signature-noise": 1.0}, "class statistics, which carry no noise"),
        ({"privacy.mode": "sums", "privacy.epsilon": 8.0}, "class statistics, which carry no noise"),
    ],
)
def test_where_classes_may_not_be_told_one_sentence_says_so(values: dict[str, str | float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.parse({"lora.head-start": "classes", **values})
