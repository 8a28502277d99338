"""Sites with a client-id each, in one process: what simulated nodes give, own state, clients that come and go."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from peft import PeftModel

from benchmarks.local_grid import LocalGrid
from client_app import runtime
from client_app.app import app as client_app
from hyperlora.config.schema import RunConfig
from hyperlora.config.settings import DataConfig
from hyperlora.messages.backbone import BackbonePart
from hyperlora.messages.train import TrainRequest
from hyperlora.task import build_model, data_set_info
from models.adapters.adapted_model import AdaptedModel
from models.backbones.weights import weights_bytes
from server_app.run import build_strategy, run
from strategies.engine.history import sample_cohort
from strategies.engine.records import RoundRecord
from tests.builders import same_products
from tests.integration.test_run_in_process import fresh_backbone, metrics_without_times
from tests.sites import SiteGrid

pytestmark = pytest.mark.usefixtures("every_site_keeps_its_parts")
IDS = ("clean-0", "inverted-0", "noisy-0", "rotated-0")
SETTINGS: dict[str, Any] = {
    "data.clients-per-domain": 1,
    "data.unseen-fraction": 0.0,
    "federation.rounds": 3,
    "federation.clients-per-round": 3,
    "federation.evaluate-every": 3,
    "federation.min-clients": 3,
    "federation.join-timeout": 5.0,
}


def settings(directory: Path, **overrides: Any) -> dict[str, Any]:
    return RunConfig.parse({**SETTINGS, "run.output-dir": str(directory), **overrides}).flat()


def site_grid(values: dict[str, Any], names: Iterable[str], state_dir: Path) -> SiteGrid:
    return SiteGrid(values, [{"client-id": name, "state-dir": str(state_dir)} for name in names])


def simulate(directory: Path, **overrides: Any) -> Path:
    """Run the first three of four simulated nodes, which host one client each."""
    values = settings(directory, **overrides)
    grid = LocalGrid(client_app, values, 4)
    del grid._contexts[4]
    return run(grid, values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three sites; their state lies beside the run directory."""
    root = tmp_path_factory.mktemp("sites")
    values = settings(root / "run")
    return run(site_grid(values, IDS[:3], root / "state"), values)


@pytest.fixture(scope="module")
def own_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a digits-vit that nobody else has."""
    module = fresh_backbone().module
    with torch.no_grad():
        module.get_parameter("blocks.0.norm1.weight").mul_(1.5)
    path = tmp_path_factory.mktemp("server") / "own.safetensors"
    path.write_bytes(weights_bytes(module))
    return path


def test_three_sites_give_the_metrics_of_three_simulated_nodes(finished: Path, tmp_path: Path) -> None:
    assert metrics_without_times(finished) == metrics_without_times(simulate(tmp_path / "simulated"))


def test_what_lies_on_the_sites_disk_changes_nothing(finished: Path, tmp_path: Path) -> None:
    state = finished.parent / "state"
    before = {path: path.stat().st_mtime_ns for path in state.glob("*/*.state")}
    assert len(before) == 3 * 4  # a signature and three splits for each client
    values = settings(tmp_path / "again")
    runtime._open_parts.cache_clear()  # so that the disk is read
    again = run(site_grid(values, IDS[:3], state), values)
    assert metrics_without_times(again) == metrics_without_times(finished)
    assert {path: path.stat().st_mtime_ns for path in state.glob("*/*.state")} == before


def test_each_site_has_its_last_adapter_as_the_server_saved_it(finished: Path) -> None:
    for name in IDS[:3]:
        own, saved = (
            PeftModel.from_pretrained(fresh_backbone().module, str(folder))
            for folder in (finished.parent / "state" / name / "adapter", finished / "adapters" / name)
        )
        mine, theirs = own.state_dict(), saved.state_dict()
        assert all(torch.allclose(mine[key], theirs[key], atol=1e-3) for key in theirs)


@pytest.mark.usefixtures("metrics_alone")
def test_a_node_without_a_client_id_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    values = settings(tmp_path / "run")
    node_configs = [{"client-id": name} for name in IDS[:3]] + [{"data-path": "/mnt"}, {"client-id": "rotated-7"}]
    directory = run(SiteGrid(values, node_configs), values)
    assert len(metrics_without_times(directory)) == 3
    left_out = json.loads((directory / "left_out.json").read_text())
    assert "names neither a 'client-id' nor" in left_out["node 4"]
    assert "names client 'rotated-7'" in left_out["node 5"]
    assert {one["client_id"] for one in json.loads((directory / "evaluation.json").read_text())} == set(IDS[:3])


def test_a_client_that_joins_at_round_3_gets_a_generated_start_and_one_that_leaves_is_done_without(
    tmp_path: Path,
) -> None:
    names = [f"{domain}-{index}" for domain in data_set_info(DataConfig()).domains for index in (0, 1)]
    newcomer, leaver, size = names[-1], names[0], 5
    seed = next(one for one in range(99) if newcomer in sample_cohort(names, size, seed=one, server_round=3))
    own = {"seed": seed, "federation.rounds": 6, "federation.clients-per-round": size, "federation.min-clients": 7}
    own |= {"hyperlora.deviations": "rounds", "data.clients-per-domain": 2}
    config = RunConfig.parse(settings(tmp_path / "run", **own))
    model = build_model(config.data, config.model, config.lora)
    strategy = build_strategy(config, model)
    grid = SiteGrid(config.flat(), [{"client-id": name} for name in names])
    everyone = set(grid.present)
    grid.present = everyone - {8}
    records: list[RoundRecord] = []
    states: dict[int, Any] = {}

    def on_round(record: RoundRecord) -> None:
        records.append(record)
        states[record.server_round] = strategy.state
        if record.server_round == 2:
            grid.present = everyone
        if record.server_round == 4:
            grid.present = everyone - {1}

    strategy.start(grid, num_rounds=6, timeout=60.0, on_round=on_round)
    assert [newcomer in record.cohort for record in records[:3]] == [False, False, True]
    assert all(leaver not in record.cohort for record in records[4:])
    assert all(record.failures == {} for record in records)

    start = first_start(grid.sent, newcomer, model)
    assert start.server_round == 3
    method, card = strategy.method, strategy.roster.cards[newcomer]
    known = method.register(states[2], strategy.roster.cards)
    assert same_products(start.start.adapter, method.start(known, card))
    assert not same_products(start.start.adapter, replace(method, generator=None).start(known, card))
    assert not same_products(start.start.adapter, known.anchor)


def parts_sent(grid: SiteGrid) -> list[int]:
    """Return the nodes that were sent a part of the backbone."""
    return [one.metadata.dst_node_id for one in grid.sent if one.metadata.message_type == BackbonePart.TYPE]


@pytest.mark.usefixtures("metrics_alone")
def test_sites_get_the_servers_own_backbone_once_and_train_on_it(tmp_path: Path, own_backbone: Path) -> None:
    weights = {"model.weights": str(own_backbone)}
    by_path = settings(tmp_path / "by-path", **weights)
    unshipped = run(site_grid(by_path, IDS[:3], tmp_path / "a"), by_path)
    grids, runs = [], []
    for name in ("first", "second", "third"):
        values = settings(tmp_path / name, **weights, **{"model.ship": True})
        at_sites = {**values, "model.weights": ""}  # no site could read the server's path
        grids.append(site_grid(at_sites, IDS[:3], tmp_path / "state"))
        runs.append(run(grids[-1], values))
        if name == "second":
            (file,) = (tmp_path / "state" / IDS[1] / "backbones").iterdir()
            file.write_bytes(file.read_bytes()[:-4] + b"oops")
    assert [parts_sent(grid) for grid in grids] == [[1, 2, 3], [], [2]]
    assert all(accuracies(one) == accuracies(unshipped) for one in runs)


@pytest.mark.usefixtures("metrics_alone")
def test_a_site_with_weights_of_its_own_that_are_others_is_left_out_before_anything_is_trained(
    tmp_path: Path, own_backbone: Path
) -> None:
    values = settings(tmp_path / "run", **{"model.ship": True})
    node_configs = [{"client-id": name, "state-dir": str(tmp_path / "state")} for name in IDS]
    node_configs[3]["weights"] = str(own_backbone)
    grid = SiteGrid(values, node_configs)
    directory = run(grid, values)
    assert parts_sent(grid) == [1, 2, 3]
    left_out = json.loads((directory / "left_out.json").read_text())
    assert list(left_out) == ["node 4"]
    assert "this node has another backbone" in left_out["node 4"]
    assert grid.asked(4) == 1


def accuracies(directory: Path) -> list[dict[str, Any]]:
    return [record["evaluation"] | record["training"] for record in metrics_without_times(directory)]


def first_start(sent: Iterable[Message], name: str, model: AdaptedModel) -> TrainRequest:
    """Return the first training request that was sent to a client."""
    trained = [message for message in sent if message.metadata.message_type == TrainRequest.TYPE]
    requests = (TrainRequest.decode(message.content, model.initialise(0)) for message in trained)
    return next(request for request in requests if request.client_id == name)
