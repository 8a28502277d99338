"""A rehearsal of separate machines: SuperLink, SuperNodes and their apps as processes on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from hyperlora.cli.certs import make_ca
from hyperlora.cli.superlink import free_port
from strategies.engine.history import sample_cohort
from tests.deployment import Deployment, certs, until
from tests.integration.test_run_in_process import metrics_without_times
from tests.integration.test_sites_in_process import IDS, settings, simulate
from tests.namespaces import Line, available, namespaces

pytestmark = pytest.mark.deployment
SITES = IDS[:3]
PATIENT = {"federation.join-timeout": 400.0, "federation.round-timeout": 400.0}


@contextmanager
def superlink(root: Path, *, tls: bool) -> Iterator[Deployment]:
    deployment = Deployment(root, tls=tls)
    try:
        deployment.start_superlink()
        yield deployment
    finally:
        left = deployment.close()
    assert left == [], "processes that did not end by themselves"


def assert_close(mine: Any, other: Any, path: str = "metrics") -> None:
    """Compare nested metrics; numbers to 1e-4."""
    if isinstance(other, dict):
        assert set(mine) == set(other), path
        for key in other:
            assert_close(mine[key], other[key], f"{path}.{key}")
    elif isinstance(other, list):
        assert len(mine) == len(other), path
        for index, one in enumerate(other):
            assert_close(mine[index], one, f"{path}[{index}]")
    else:
        assert mine == (pytest.approx(other, abs=1e-4) if isinstance(other, float) else other), path


def node_config(deployment: Deployment, name: str) -> dict[str, Any]:
    return {"client-id": name, "state-dir": str(deployment.root / "state" / name)}


def test_with_tls_and_keys_intruders_are_left_out_and_change_nothing(tmp_path: Path) -> None:
    with superlink(tmp_path / "deployment", tls=True) as deployment:
        keep_intruders_out(deployment, tmp_path)


def keep_intruders_out(deployment: Deployment, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed.json"
    publics = {name: deployment.make_key(name) for name in (*SITES, "impostor", "expired-ca", "stranger")}
    for name in SITES:
        certs("allow", allowed, name, publics[name])
    deployment.register(*(public for name, public in publics.items() if name != "stranger"))
    for name in SITES:
        deployment.start_node(name, node_config(deployment, name))
    deployment.start_node("impostor", {"client-id": SITES[0]})
    deployment.start_node("expired-ca", {"client-id": "rotated-0"}, ca=expired_ca(deployment), works=False)
    deployment.start_node("stranger", {"client-id": "rotated-0"}, works=False)
    deployment.await_nodes(*SITES, "impostor")

    own = {"federation.rounds": 1, "federation.evaluate-every": 1}
    state = deployment.run(settings(tmp_path / "run", **PATIENT, **own, **{"federation.allowed-clients": str(allowed)}))
    assert state.completed, deployment.log("run").read_text()
    simulated = simulate(tmp_path / "simulated", **own)
    assert_close(metrics_without_times(tmp_path / "run"), metrics_without_times(simulated))
    left_out = json.loads((tmp_path / "run" / "left_out.json").read_text())
    why = f"it claims client '{SITES[0]}', but it holds a key that is not on the allow-list"
    assert deployment.said("run", f"node {deployment.node_id('impostor')} is left out: {why}")
    assert left_out[f"node {deployment.node_id('impostor')}"].startswith(why)
    for who, why in {
        "expired-ca": "certificate verify failed: certificate has expired",
        "stranger": "Failed to activate SuperNode.",
    }.items():
        until(lambda who=who: deployment.processes[who].poll() is not None, 60, f"the end of '{who}'")
        assert deployment.said(who, why), who


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="this machine lets us make no network namespaces")
def test_sites_in_namespaces_of_their_own_reach_the_server_and_not_one_another(tmp_path: Path) -> None:
    with namespaces(len(SITES)) as (server, here, lines):
        hosts = [line.server for line in (here, *lines)]
        deployment = Deployment(tmp_path / "deployment", tls=True, hosts=hosts, server_inside=server)
        try:
            deployment.start_superlink()
            for name, line in zip(SITES, lines, strict=True):
                deployment.register(deployment.make_key(name))
                deployment.start_node(name, node_config(deployment, name), host=line.server, inside=line.inside)
            deployment.await_nodes(*SITES)
            assert_apart(lines, deployment.port)
            state = deployment.run(settings(tmp_path / "run", **PATIENT, **{"federation.rounds": 1}))
            assert state.completed, deployment.log("run").read_text()
        finally:
            left = deployment.close()
    assert left == [], "processes that did not end by themselves"
    assert [record["cohort"] for record in metrics_with_times(tmp_path / "run" / "metrics.jsonl")] == [list(SITES)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink without TLS and a node for each site; the tests that share it start what is not there."""
    with superlink(tmp_path_factory.mktemp("plain") / "deployment", tls=False) as deployment:
        yield deployment


def start_sites(deployment: Deployment, *names: str) -> None:
    """Start the nodes among ``names`` that do not run yet, and wait for them."""
    for name in names:
        if name not in deployment.processes:
            deployment.start_node(name, node_config(deployment, name))
    deployment.await_nodes(*names)


@pytest.mark.slow
def test_three_nodes_without_tls_take_the_servers_backbone_and_give_the_metrics_of_the_simulation(
    plain: Deployment, tmp_path: Path
) -> None:
    start_sites(plain, *SITES)
    own = {"federation.rounds": 2, "federation.evaluate-every": 2, "model.ship": True}
    state = plain.run(settings(tmp_path / "run", **PATIENT, **own))
    assert state.completed, plain.log("run").read_text()
    simulated = simulate(tmp_path / "simulated", **own)
    assert_close(metrics_without_times(tmp_path / "run"), metrics_without_times(simulated))
    shipped = [file.name for file in (plain.root / "state").glob("*/*/backbones/*.safetensors")]
    assert len(shipped) == 3
    assert len(set(shipped)) == 1


@pytest.mark.slow
def test_a_client_that_joins_takes_part_and_one_that_is_killed_delays_no_round_beyond_the_timeout(
    plain: Deployment, tmp_path: Path
) -> None:
    first, leaver, newcomer = SITES
    timeout = 150.0
    drawn = {2: newcomer, 3: newcomer, 4: leaver}
    seed = next(one for one in range(999) if all(name in cohort(one, number) for number, name in drawn.items()))
    own = {"seed": seed, "federation.rounds": 5, "federation.clients-per-round": 2, "federation.min-clients": 2}
    own |= {"federation.evaluate-every": 5, "federation.round-timeout": timeout, "federation.join-timeout": 240.0}
    start_sites(plain, first, leaver)
    if newcomer in plain.processes:
        plain.stop(newcomer)
    metrics = tmp_path / "run" / "metrics.jsonl"

    def look() -> None:
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if done == 1 and newcomer not in plain.processes:
            plain.start_node(newcomer, node_config(plain, newcomer))
        if done == 3 and leaver in plain.processes:
            plain.stop(leaver, kill=True)

    state = plain.run(settings(tmp_path / "run", **own), look)
    assert state.completed, plain.log("run").read_text()
    records = metrics_with_times(metrics)
    assert min(record["server_round"] for record in records if newcomer in record["cohort"]) > 1
    assert all(record["seconds"]["waiting"] <= timeout + 10 for record in records)
    assert list(records[3]["failures"]) == [f"train {leaver}"]
    assert (leaver in records[4]["cohort"], records[4]["failures"]) == (False, {})


def assert_apart(lines: Sequence[Line], server_port: int) -> None:
    """Check that every site reaches the server, and none a port that is open at the next one."""
    port = free_port()
    for line, other in zip(lines, [*lines[1:], lines[0]], strict=True):
        assert reaches(line, line.server, server_port)
        command = [*other.inside, sys.executable, "-m", "http.server", str(port), "--bind", "0.0.0.0"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as listener:
            try:
                until(lambda other=other: reaches(other, other.own, port), 30, "the start of the listener")
                assert not reaches(line, other.own, port)
            finally:
                listener.kill()


def reaches(line: Line, address: str, port: int) -> bool:
    """Tell whether a connection from a site's namespace comes about within three seconds."""
    program = f"import socket; socket.create_connection(({address!r}, {port}), timeout=3)"
    done = subprocess.run([*line.inside, sys.executable, "-c", program], capture_output=True, check=False)
    return done.returncode == 0


def cohort(seed: int, server_round: int) -> list[str]:
    return sample_cohort(SITES, 2, seed=seed, server_round=server_round)


def metrics_with_times(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expired_ca(deployment: Deployment) -> Path:
    """Return a certificate of the deployment's CA, of the same key, that has expired."""
    key = load_pem_private_key((deployment.root / "tls" / "ca.key").read_bytes(), password=None)
    path = deployment.root / "tls" / "expired.crt"
    path.write_bytes(make_ca(key, days=0).public_bytes(Encoding.PEM))
    return path
