"""A Ray cluster is looked over before Flower starts; what it lacks is said in one sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hyperlora.cli import cluster, superlink
from hyperlora.cli.cluster import Cluster, Node, find_cluster, lacking
from hyperlora.cli.main import app
from hyperlora.cli.output import CommandError
from hyperlora.cli.preflight import check_device
from hyperlora.cli.superlink import federation_size, free_port, simulation_size
from hyperlora.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
TWO = (Node("head", cpus=4, gpus=0), Node("second", cpus=3, gpus=1))


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Answers of a cluster of two nodes; the value is what was asked."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cluster, "_look", lambda *what: asked.append(what) or Cluster("10.0.0.1:6379", TWO))
    return asked


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", ":6379", "head:port"])
def test_what_is_no_address_of_a_head_is_refused(address: str) -> None:
    with pytest.raises(CommandError, match="neither 'auto' nor HOST:PORT"):
        find_cluster(address, 1, 0, [])


def test_an_address_where_nobody_listens_is_refused_in_one_sentence() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(CommandError, match=rf"there is no Ray cluster at '{address}': .*refused; ray start --head"):
        find_cluster(address, 1, 0, [])


def test_clients_are_counted_node_by_node_as_flower_counts_them(two_nodes: list[tuple[Any, ...]]) -> None:
    found = find_cluster("auto", 2, 0, ["/data"])
    assert two_nodes == [("auto", ["/data"])]
    assert found.described(2, 0) == (
        "Ray cluster at 10.0.0.1:6379: 2 nodes with 7 CPUs and 1 GPUs, room for 3 clients at once"
    )
    assert [node.clients(1, 0.5) for node in TWO] == [0, 2]


def test_clients_that_no_node_has_room_for_are_refused(two_nodes: list[tuple[Any, ...]]) -> None:
    with pytest.raises(CommandError, match=r"takes 5 CPUs and 0 GPUs .*no node .*head: 4 CPUs, 0 GPUs; second: 3 CPUs"):
        find_cluster("auto", 5, 0, [])
    with pytest.raises(CommandError, match="takes 4 CPUs and 1 GPUs"):  # the CPUs on one node, the GPU on the other
        find_cluster("auto", 4, 1, [])


def test_a_node_that_runs_clients_must_have_the_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (TWO[0], Node("second", 3, 1, lacks=["/data/pacs", "torch 2.15.0 (it has none)"]))
    monkeypatch.setattr(cluster, "_look", lambda *_: Cluster("10.0.0.1:6379", nodes))
    with pytest.raises(CommandError, match=r"node second .*lacks /data/pacs, torch 2.15.0 \(it has none\): paths and"):
        find_cluster("auto", 1, 0, ["/data/pacs"])
    assert find_cluster("auto", 4, 0, ["/data/pacs"]).nodes == nodes  # no client runs on the second


def test_a_look_that_fails_is_one_sentence_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess(
        [], 1, stdout="", stderr="ConnectionError: Could not find\n  any Ray instance\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(CommandError, match="'auto' cannot be joined: ConnectionError: Could not find any Ray instance"):
        find_cluster("auto", 1, 0, [])


def test_lacking_names_paths_and_packages(tmp_path: Path) -> None:
    asked = {"typer": "0.0.1", "no-such-package": "1.0"}
    absent, typer, package = lacking([str(tmp_path), str(tmp_path / "no")], asked)
    assert absent == str(tmp_path / "no")
    assert typer.startswith("typer 0.0.1 (it has ")
    assert package == "no-such-package 1.0 (it has none)"


def test_only_a_simulation_that_joins_a_cluster_has_its_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:1")
    assert "RAY_ADDRESS" not in superlink._environment(tmp_path, "mark", None)
    joined = superlink._environment(Path("/tmp/h"), "mark", "10.0.0.1:6379")
    assert joined["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert joined.get("RAY_TMPDIR") != "/tmp/h"  # the cluster's own is elsewhere


def test_ray_refuses_a_number_of_cpus_with_an_address_so_none_is_sent() -> None:
    assert federation_size(3, 2, 0.5) == "num-supernodes=3 client-resources-num-cpus=2 client-resources-num-gpus=0.5"
    assert simulation_size(3, 1, 0).startswith(federation_size(3, 1, 0) + " init-args-num-cpus=")
    with pytest.raises(CommandError, match="exceeds the"):
        simulation_size(3, 100_000, 0)
    assert federation_size(3, 100_000, 0)


def test_the_gpu_of_a_cluster_need_not_be_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_gpus = RunConfig.parse({"train.device": "cuda"})
    check_device(on_gpus, 0.5, clients_here=False)
    with pytest.raises(CommandError, match="this machine has no GPU"):
        check_device(on_gpus, 0.5)
    with pytest.raises(CommandError, match="--gpus-per-client is 0"):
        check_device(on_gpus, 0, clients_here=False)


def test_the_command_joins_the_cluster_that_it_found(
    two_nodes: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[tuple[Any, ...]] = []
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    monkeypatch.setattr("hyperlora.cli.run._expected_clients", lambda config: 20)
    monkeypatch.setattr("hyperlora.cli.run.simulate", lambda settings, *rest: begun.append(rest))
    options = ["--gpus-per-client", "0.5", "-c", "train.device=cuda", "-c", f"model.weights={weights}"]
    outcome = CliRunner().invoke(app, ["run", str(ROOT), *options], env={"RAY_ADDRESS": "auto"})
    assert outcome.exit_code == 0, outcome.output
    assert begun == [(federation_size(20, 1, 0.5), "10.0.0.1:6379")]
    assert two_nodes == [("auto", [str(weights)])]
    assert outcome.output.startswith("Ray cluster at 10.0.0.1:6379: 2 nodes")
