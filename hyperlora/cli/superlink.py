"""A simulation SuperLink on this machine: started for one run, gone after it."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperlora.cli.flower import Connection, base_environment, program
from hyperlora.cli.output import CommandError
from hyperlora.cli.processes import MARKER, end_marked, guarded, shielded, usable_cores
from hyperlora.storage.files import write_text

NAME = "local"
START_TIMEOUT = 90.0
LONGEST_RAY_FOLDER = 40
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONUNBUFFERED": "1",
}


@contextmanager
def local_superlink(log: Path, ray_address: str | None = None) -> Iterator[Connection]:
    """Start a SuperLink on a free loopback port and end it with all its descendants after the block.

    They are ended as well if this process is killed in the block.

    Args:
        log: file that the SuperLink's output is appended to.
        ray_address: of the Ray cluster that its simulations join, as HOST:PORT; they start Ray here where it is None.

    Raises:
        CommandError: when it does not answer in time.
    """
    home = Path(tempfile.mkdtemp(prefix="hyperlora-"))
    mark = uuid.uuid4().hex
    with guarded(mark, home):
        try:
            port = free_port()
            connection = Connection(NAME, _environment(home, mark, ray_address))
            _write_flower_config(home, port)
            _await_health(_start(connection, port, log), port, log)
            yield connection
        finally:
            with shielded():
                end_marked(mark)
                shutil.rmtree(home, ignore_errors=True)


def federation_size(supernodes: int, cpus: int, gpus: float) -> str:
    """Return Flower's ``--federation-config`` for whatever Ray the simulation finds."""
    return f"num-supernodes={supernodes} client-resources-num-cpus={cpus} client-resources-num-gpus={gpus}"


def simulation_size(supernodes: int, cpus: int, gpus: float) -> str:
    """Return Flower's ``--federation-config`` for a Ray that is started on this machine.

    Raises:
        CommandError: when a client would get more CPUs than there are.
    """
    cores = usable_cores()
    if cpus > cores:
        raise CommandError(f"--cpus-per-client {cpus} exceeds the {cores} CPUs of this machine")
    return f"{federation_size(supernodes, cpus, gpus)} init-args-num-cpus={cores}"


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(home: Path, mark: str, ray_address: str | None) -> dict[str, str]:
    environment = base_environment() | QUIET | {"FLWR_HOME": str(home), MARKER: mark}
    bypass = [environment.get("NO_PROXY", ""), "127.0.0.1"]
    environment["NO_PROXY"] = environment["no_proxy"] = ",".join(filter(None, bypass))
    environment.pop("RAY_ADDRESS", None)
    if ray_address:  # ray.init reads it from there; Flower's own configuration has no key for it
        return environment | {"RAY_ADDRESS": ray_address}
    if len(str(home)) <= LONGEST_RAY_FOLDER:  # Ray's sockets lie in it, and their paths have a short limit
        environment["RAY_TMPDIR"] = str(home)
    return environment


def _write_flower_config(home: Path, port: int) -> None:
    text = f'[superlink]\ndefault = "{NAME}"\n[superlink.{NAME}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    write_text(home / "config.toml", text, durable=False)


def _start(connection: Connection, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [program("flower-superlink", connection.environment), "--insecure", "--simulation"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(connection.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_health(superlink: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if superlink.poll() is not None:
            raise CommandError(f"the SuperLink ended with status {superlink.returncode} at its start; see {log}")
        if _healthy(port):
            return
        time.sleep(0.1)
    raise CommandError(f"the SuperLink did not answer within {START_TIMEOUT:.0f} seconds; see {log}")


def _healthy(port: int) -> bool:
    probe = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        probe.request("GET", "/health")
        return probe.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        probe.close()
