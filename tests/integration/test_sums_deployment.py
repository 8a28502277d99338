"""A run of sums over three sites on loopback, one of which is killed while its clients work on a masked answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from client_app.runtime import open_runtime
from hyperlora.cli.processes import marked_processes
from hyperlora.config.schema import RunConfig
from strategies.engine.checkpoint import CheckpointStore
from strategies.methods.hyperlora.state import HyperLoraState
from strategies.methods.registry import build_method
from tests.deployment import Deployment
from tests.disclosure import Secret, copy_memory, in_files, in_memory, secrets_of, statistics_of

pytestmark = [pytest.mark.deployment, pytest.mark.slow]
SITES, PARTS = ("site-0", "site-1", "site-2"), 4
"""The sites host two clients each; a fourth part of the data set is at nobody's."""
LOST, CLIENTS, LEFT, LOOKS = "site-2", 6, 4, 20
SETTINGS: dict[str, Any] = {
    "privacy.mode": "sums",
    "privacy.least-clients": 3,
    "data.clients-per-domain": 2,
    "data.unseen-fraction": 0.0,
    "federation.rounds": 1,
    "federation.min-clients": CLIENTS,
    "federation.clients-per-round": CLIENTS,
    "federation.clients-per-node": 2,
    "federation.join-timeout": 400.0,
    "federation.round-timeout": 240.0,
    "train.local-steps": 2,
    "train.adapt-steps": 0,
}


def parsed(directory: Path) -> RunConfig:
    return RunConfig.parse({**SETTINGS, "run.output-dir": str(directory)})


def hosted() -> dict[str, list[str]]:
    """Return the clients of each site."""
    names = open_runtime(RunConfig.parse(SETTINGS)).federation.client_ids
    return {site: list(names[index::PARTS]) for index, site in enumerate(SITES)}


def asked(directory: Path) -> int:
    """Return how many messages of sums the server has sent, as its audit log says."""
    log = directory / "audit.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return sum((one["event"], one.get("type")) == ("asked", "query.sum") for one in entries)


def latest(directory: Path) -> HyperLoraState:
    found = CheckpointStore(directory / "checkpoints", keep=1).latest(build_method(parsed(directory)).state_classes)
    assert found is not None
    assert isinstance(found.state, HyperLoraState)
    return found.state


def server_processes(deployment: Deployment) -> list[int]:
    programs = {"flower-superlink", "flwr-serverapp"}
    return [one.pid for one in marked_processes(deployment.mark) if programs & {Path(w).name for w in one.cmdline()}]


@dataclass
class Watch:
    """Kills a site while the first masked answer is worked on, and copies memories two sums later.

    A site's process is looked at several times: it holds a message only until a client's own process has it.
    """

    deployment: Deployment
    directory: Path
    copies: Path
    at_server: list[Path] = field(default_factory=list)
    at_site: list[Path] = field(default_factory=list)

    def __call__(self) -> None:
        sent = asked(self.directory)
        if sent > 2 * CLIENTS and LOST in self.deployment.processes:  # keys and shares are there, from all
            self.deployment.stop(LOST, kill=True)
        if sent > 3 * CLIENTS + 9 * LEFT and not self.at_server:
            self.at_server = [self._copied(process) for process in server_processes(self.deployment)]
        if self.at_server and len(self.at_site) < LOOKS:
            self.at_site.append(self._copied(self.deployment.processes[SITES[0]].pid))

    def _copied(self, process: int) -> Path:
        copy = self.copies / f"{process}-{len(self.at_site)}"
        copy_memory(process, copy)
        return copy


def found_in(copies: Sequence[Path], secrets: Sequence[Secret]) -> set[str]:
    return {name for copy in copies for name in in_memory(copy, secrets)}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="memory of a process is read in Linux's way")
def test_a_site_is_lost_in_the_middle_of_a_sum_and_the_server_has_no_clients_vector(tmp_path: Path) -> None:
    directory, sites = tmp_path / "run", hosted()
    names, runtime = sorted(name for part in sites.values() for name in part), open_runtime(parsed(directory))
    start = runtime.model.fresh_adapter(0)
    public = Secret("the fresh adapter, which is public", next(iter(start.low_rank.values())).A.flatten().numpy())
    own = [one for one in secrets_of(runtime, names, CLIENTS, start, start) if "class" not in one.name]
    deployment = Deployment(tmp_path / "deployment", tls=False)
    copies = tmp_path / "memory"
    copies.mkdir()
    watch = Watch(deployment, directory, copies)
    try:
        deployment.start_superlink()
        for index, site in enumerate(SITES):
            deployment.start_node(site, {"partition-id": index, "num-partitions": PARTS})
        deployment.await_nodes(*SITES)
        state = deployment.run(parsed(directory).flat(), watch)
        assert state.completed, deployment.log("run").read_text()
    finally:
        left = deployment.close()
    assert left == [], "processes that did not end by themselves"
    assert found_in(watch.at_server, [*own, public]) == {public.name}
    assert found_in(watch.at_site, [*own, public]) == {public.name}
    shutil.rmtree(copies)

    record = json.loads((directory / "metrics.jsonl").read_text())
    assert record["cohort"] == names
    assert record["failures"].keys() == {f"sum {name}" for name in sites[LOST]}
    assert record["training"]["clients"] == LEFT
    assert record["evaluation"]["seen"]["zero_step"]["mean"] > 0.3
    assert {one["client_id"] for one in json.loads((directory / "evaluation.json").read_text())} == {"group-1"}
    told, after = [name for name in names if name not in sites[LOST]], latest(directory)
    sums = torch.stack([statistics_of(runtime, name, after.served_anchor).sums for name in told]).sum(dim=0)
    torch.testing.assert_close(after.class_statistics["group-1"].sums, sums, rtol=1e-4, atol=1e-2)
    written = [directory, deployment.root / "superlink.db", deployment.root / "logs"]
    assert in_files(written, secrets_of(runtime, told, CLIENTS, start, after.served_anchor)) == {}
