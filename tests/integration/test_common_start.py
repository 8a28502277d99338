"""A run that begins with lora_A from all clients' inputs: asked once, of those that train, and what all are sent."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from client_app.runtime import open_runtime
from client_app.tasks import describe_inputs
from hyperlora.config.schema import RunConfig
from hyperlora.messages.inputs import InputsRequest
from hyperlora.messages.train import TrainRequest
from models.adapters.input_moments import common_start
from server_app.run import run


def test_all_clients_begin_with_the_start_that_their_inputs_make(tmp_path: Path) -> None:
    asked = {"method": "fedit", "lora.start": "eva", "federation.rounds": 2, "federation.clients-per-round": 2}
    small = {"data.clients-per-domain": 2, "data.unseen-fraction": 0.5, "train.local-steps": 1}
    config = RunConfig.parse({**asked, **small, "run.output-dir": str(tmp_path / "run")})
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
