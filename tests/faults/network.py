"""A site whose network is gone for 20 seconds: real processes, the line between site and server taken down.

Where the system lets us make network namespaces, the site's end of its line is set down; elsewhere the site's SuperNode
is stopped (SIGSTOP) and goes on after that time.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperlora.cli.flower import RunStatus
from server_app.run import run
from tests.deployment import Deployment
from tests.faults.server import metrics_of
from tests.faults.table import Row
from tests.integration.test_sites_in_process import IDS, settings, site_grid
from tests.namespaces import Line, available, namespaces

SITES, SECONDS = IDS[:2], 20.0
OWN: dict[str, Any] = {
    "data.clients-per-domain": 1,
    "federation.rounds": 2,
    "federation.evaluate-every": 2,
    "federation.clients-per-round": 2,
    "federation.min-clients": 2,
    "federation.join-timeout": 400.0,
    "federation.round-timeout": 400.0,
}
EXPECTED = "nobody is left out, the metrics are those of a simulation"


def network_row(directory: Path) -> Row:
    """Rehearse a deployment of two sites, one of which is cut off for 20 seconds after round 1."""
    with namespaced(directory) if available() else paused(directory) as (deployment, means, cut):
        deployment.await_nodes(*SITES)
        status, lasted = run_with_a_cut(deployment, directory / "run", cut)
    if not status.completed:
        return Row("the network drops for 20 s", EXPECTED, f"{means}: the run ended as {status}", passed=False)
    mine, theirs = metrics_of(directory / "run"), metrics_of(simulated(directory / "simulated"))
    same = close(mine, theirs)
    failures = [record["failures"] for record in mine if record["failures"]]
    seen = f"{means} for {lasted:.0f} s: {failures or 'nobody left out'}, {'same' if same else 'OTHER'} metrics"
    return Row("the network drops for 20 s", EXPECTED, seen, same and not failures and lasted >= SECONDS)


def simulated(directory: Path) -> Path:
    """Make the same run in this process, where no line can be cut."""
    values = settings(directory / "run", **OWN)
    return run(site_grid(values, SITES, directory / "state"), values)


def run_with_a_cut(deployment: Deployment, place: Path, cut: Callable[[bool], None]) -> tuple[RunStatus, float]:
    metrics, times = place / "metrics.jsonl", {}

    def look() -> None:
        if "down" not in times and metrics.exists() and metrics.read_text().count("\n"):
            cut(True)
            times["down"] = time.monotonic()
        elif "down" in times and "up" not in times and time.monotonic() - times["down"] >= SECONDS:
            cut(False)
            times["up"] = time.monotonic()

    status = deployment.run(settings(place, **OWN), look)
    return status, times.get("up", 0.0) - times.get("down", 0.0)


@contextmanager
def namespaced(directory: Path) -> Iterator[tuple[Deployment, str, Callable[[bool], None]]]:
    """Sites in namespaces of their own, each with a line to the server."""
    with namespaces(len(SITES)) as (server, here, lines):
        hosts = [line.server for line in (here, *lines)]
        deployment = Deployment(directory / "deployment", tls=False, hosts=hosts, server_inside=server)
        try:
            deployment.start_superlink()
            for name, line in zip(SITES, lines, strict=True):
                deployment.start_node(name, node_config(deployment, name), host=line.server, inside=line.inside)
            yield deployment, "the site's line down", lambda down: switch(lines[-1], down)
        finally:
            deployment.close()


@contextmanager
def paused(directory: Path) -> Iterator[tuple[Deployment, str, Callable[[bool], None]]]:
    """Sites on loopback, whose network cannot be cut; the SuperNode of one is stopped instead."""
    deployment = Deployment(directory / "deployment", tls=False)
    try:
        deployment.start_superlink()
        for name in SITES:
            deployment.start_node(name, node_config(deployment, name))
        node = deployment.processes[SITES[-1]]
        yield deployment, "SuperNode stopped", lambda down: node.send_signal(signal.SIGSTOP if down else signal.SIGCONT)
    finally:
        deployment.close()


def switch(line: Line, down: bool) -> None:
    """Take the site's end of its line down, or up again."""
    listed = subprocess.run(
        [*line.inside, "ip", "-o", "link", "show", "type", "veth"], capture_output=True, text=True, check=True
    )
    device = listed.stdout.split(":")[1].split("@")[0].strip()
    subprocess.run([*line.inside, "ip", "link", "set", device, "down" if down else "up"], check=True)


def node_config(deployment: Deployment, name: str) -> dict[str, str]:
    return {"client-id": name, "state-dir": str(deployment.root / "state" / name)}


def close(mine: object, other: object) -> bool:
    """Tell whether nested metrics are equal, numbers to 1e-4."""
    if isinstance(mine, dict) and isinstance(other, dict):
        return set(mine) == set(other) and all(close(mine[key], other[key]) for key in other)
    if isinstance(mine, list) and isinstance(other, list):
        return len(mine) == len(other) and all(map(close, mine, other))
    if isinstance(mine, float) and isinstance(other, float):
        return abs(mine - other) <= 1e-4
    return mine == other
