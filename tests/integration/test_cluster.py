"""`hyperlora run` on a Ray cluster: two nodes as processes on this machine, small object stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_run_in_process import metrics_without_times
from tests.integration.test_simulation import simulate

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 otherwise, which starves clients on a machine with other work
    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster.address
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


def test_a_run_joins_a_cluster_uses_both_nodes_and_gives_what_one_process_gives(
    nodes: str, short_run: Path, tmp_path: Path
) -> None:
    made = simulate(tmp_path / "joined", "--ray-address", nodes)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "2 nodes with 2 CPUs and 0 GPUs, room for 2 clients at once" in made.stdout
    assert len(nodes_with_actors(nodes)) == 2
    assert metrics_without_times(tmp_path / "joined") == metrics_without_times(short_run)
