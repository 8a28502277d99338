"""`hyperlora run` on a Ray cluster: two nodes as processes on this machine, small object stores."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_run_in_process import metrics_without_times
from tests.integration.test_simulation import simulate

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 otherwise, which starves clients on a machine with other work
    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(
        initialize_head=True, head_node_args={**size, "include_dashboard": False, "_system_config": quick}
    )
    cluster.add_node(**size)
    yield cluster
    cluster.shutdown()


def nodes_with_actors(address: str) -> set[str]:
    """Return the ids of the nodes that clients have been on."""
    import ray
    from ray._private.state import actors

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        return {actor["Address"]["NodeID"] for actor in actors().values()}
    finally:
        ray.shutdown()


def kill_after_the_first_round(cluster: Cluster, directory: Path) -> None:
    metrics = directory / "metrics.jsonl"
    while not metrics.exists():
        time.sleep(0.2)
    time.sleep(1.0)
    cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)


def test_a_run_joins_a_cluster_uses_both_nodes_and_gives_what_one_process_gives(
    two_nodes: Cluster, short_run: Path, tmp_path: Path
) -> None:
    made = simulate(tmp_path / "joined", "--ray-address", two_nodes.address)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "2 nodes with 2 CPUs and 0 GPUs, room for 2 clients at once" in made.stdout
    assert len(nodes_with_actors(two_nodes.address)) == 2
    assert metrics_without_times(tmp_path / "joined") == metrics_without_times(short_run)


def test_a_lost_node_costs_no_contribution_where_others_have_room(two_nodes: Cluster, tmp_path: Path) -> None:
    directory = tmp_path / "lost"
    threading.Thread(target=kill_after_the_first_round, args=(two_nodes, directory), daemon=True).start()
    longer = "train.local-steps=100", "federation.rounds=5", "federation.evaluate-every=5"
    made = simulate(directory, "--ray-address", two_nodes.address, *(part for one in longer for part in ("-c", one)))
    assert made.returncode == 0, made.stdout + made.stderr
    assert "a process that clients train in has died" in (directory / "flower.log").read_text()
    rounds = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [(one["server_round"], one["failures"]) for one in rounds] == [(number, {}) for number in range(1, 6)]
    assert "accuracy of 16 seen clients" in made.stdout
