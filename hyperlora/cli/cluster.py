"""A Ray cluster that a simulation joins: found, and looked over for what the clients need, before Flower starts.

Ray is asked by a process of its own, ``python -m hyperlora.cli.cluster ADDRESS PATH...``: where a cluster does not
answer, Ray's core may end the process that it is in.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hyperlora.cli.output import CommandError, one_line

CONNECT_TIMEOUT, LOOK_TIMEOUT, NODE_TIMEOUT = 5.0, 180.0, 120.0
ALIKE = ("flwr", "torch")
"""Packages whose versions have to agree; Ray itself sees to Python's and its own."""
MOST_REASON = 300


@dataclass(frozen=True)
class Node:
    """A node of the cluster: how much of it there is in all, and what it lacks of paths and packages."""

    name: str
    cpus: float
    gpus: float
    lacks: Sequence[str] = ()

    def clients(self, cpus: int, gpus: float) -> int:
        """Return how many clients run on the node at once; Flower counts them in the same way."""
        fitting = int(self.cpus / cpus)
        return min(fitting, int(self.gpus / gpus)) if gpus else fitting


@dataclass(frozen=True)
class Cluster:
    """A cluster that was found; ``address`` is that of its head, as HOST:PORT."""

    address: str
    nodes: tuple[Node, ...]

    def described(self, cpus: int, gpus: float) -> str:
        """Return in words what a run gets of it."""
        at_once = sum(node.clients(cpus, gpus) for node in self.nodes)
        has = f"{sum(node.cpus for node in self.nodes):g} CPUs and {sum(node.gpus for node in self.nodes):g} GPUs"
        return f"Ray cluster at {self.address}: {len(self.nodes)} nodes with {has}, room for {at_once} clients at once"


def find_cluster(address: str, cpus: int, gpus: float, paths: Sequence[str]) -> Cluster:
    """Return the cluster at an address once every node that will run clients can.

    Args:
        address: HOST:PORT of the head, or ``auto`` for the cluster that this machine is a node of.
        cpus, gpus: what one client takes.
        paths: files and directories that clients read.

    Raises:
        CommandError: it does not answer, no node has room for a client, or one that has lacks a path or a package.
    """
    _require_listener(address)
    cluster = _look(address, paths)
    able = [node for node in cluster.nodes if node.clients(cpus, gpus)]
    if not able:
        most = "; ".join(f"{node.name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in cluster.nodes)
        raise CommandError(
            f"a client takes {cpus} CPUs and {gpus:g} GPUs (--cpus-per-client, --gpus-per-client), and no node of the "
            f"Ray cluster at {cluster.address} has that: {most}"
        )
    for node in able:
        if node.lacks:
            raise CommandError(
                f"node {node.name} of the Ray cluster at {cluster.address} lacks {', '.join(node.lacks)}: paths and "
                "packages have to be the same on every node that runs clients"
            )
    return cluster


def _require_listener(address: str) -> None:
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise CommandError(f"--ray-address '{address}' is neither 'auto' nor HOST:PORT of the head of a Ray cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise CommandError(f"there is no Ray cluster at '{address}': {error}; ray start --head starts one") from error


def _look(address: str, paths: Sequence[str]) -> Cluster:
    command = [sys.executable, "-P", "-m", "hyperlora.cli.cluster", address, *paths]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    try:
        done = subprocess.run(
            command, env=os.environ | quiet, capture_output=True, text=True, timeout=LOOK_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"the Ray cluster at '{address}' did not answer in {LOOK_TIMEOUT:.0f} s") from None
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return Cluster(found["address"], tuple(Node(**node) for node in found["nodes"]))
    except (LookupError, ValueError, TypeError):
        said = one_line(done.stderr)[-MOST_REASON:] or f"status {done.returncode}"
        raise CommandError(f"the Ray cluster at '{address}' cannot be joined: {said}") from None


def look(address: str, paths: Sequence[str]) -> dict[str, Any]:
    """Join the cluster for a moment and return its address and its nodes, each with what it lacks."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    search_path = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # as Flower's simulation gives it to clients
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=search_path)
    try:
        here = {name: metadata.version(name) for name in ALIKE}
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        asked = [
            ray.remote(lacking)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(list(paths), here)
            for node in nodes
        ]
        told = zip(nodes, ray.get(asked, timeout=NODE_TIMEOUT), strict=True)
        found = [
            {
                "name": node["NodeManagerHostname"],
                "cpus": node["Resources"].get("CPU", 0.0),
                "gpus": node["Resources"].get("GPU", 0.0),
                "lacks": lacks,
            }
            for node, lacks in told
        ]
        return {"address": ray.get_runtime_context().gcs_address, "nodes": found}
    finally:
        ray.shutdown()


def lacking(paths: Sequence[str], versions: dict[str, str]) -> list[str]:
    """Return which paths, and which packages in these versions, the node that this runs on does not have."""
    missing = [path for path in paths if not Path(path).exists()]
    for name, version in versions.items():
        found = "none"
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = metadata.version(name)
        if found != version:
            missing.append(f"{name} {version} (it has {found})")
    return missing


if __name__ == "__main__":
    try:
        print(json.dumps(look(sys.argv[1], sys.argv[2:])))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
