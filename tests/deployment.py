"""A federation of real processes on loopback: a SuperLink and SuperNodes, as docs/deployment.md starts them."""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hyperlora.cli import flower
from hyperlora.cli.flower import Connection, RunStatus, follow
from hyperlora.cli.main import app
from hyperlora.cli.processes import MARKER, end_marked, marked_processes
from hyperlora.cli.superlink import free_port

REPOSITORY = Path(__file__).parents[1]
HOST = "127.0.0.1"
NAME = "rehearsal"


def certs(*arguments: object) -> None:
    result = CliRunner().invoke(app, ["certs", *map(str, arguments)])
    assert result.exit_code == 0, result.output


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds:.0f} s"
        time.sleep(0.2)


class Deployment:
    """Processes that bear one mark.

    With ``tls`` the SuperLink lets only registered keys in, and the apps run beside SuperExecs of their own that share
    a secret with the SuperLink or the SuperNode, as in docker/compose.yml.

    Args:
        hosts: the server's addresses; the first is that for this process, node i may call it by another.
        server_inside: the beginning of the server's commands, which puts them into a network namespace.
    """

    def __init__(
        self, root: Path, *, tls: bool, hosts: Sequence[str] = (HOST,), server_inside: Sequence[str] = ()
    ) -> None:
        self.root, self.tls, self.mark, self.port = root, tls, uuid.uuid4().hex, free_port()
        self.hosts, self.server_inside = hosts, server_inside
        self.secret = root / "keys" / "superexec"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        own = {"FLWR_HOME": str(root / "flwr"), MARKER: self.mark, "OMP_NUM_THREADS": "1"}
        own |= {"NO_PROXY": ",".join((*hosts, HOST)), "no_proxy": ",".join((*hosts, HOST)), "PYTHONUNBUFFERED": "1"}
        self.connection = Connection(NAME, flower.base_environment() | own)
        for folder in ("flwr", "logs", "keys"):
            (root / folder).mkdir(parents=True)
        if tls:
            self.secret.write_bytes(os.urandom(32))
            names = [part for host in {*hosts, HOST} for part in ("--host", host)]
            certs("server", root / "tls", *names)
        trust = f'root-certificates = "{root}/tls/ca.crt"' if tls else "insecure = true"
        (root / "flwr" / "config.toml").write_text(f'[superlink.{NAME}]\naddress = "{hosts[0]}:{self.port}"\n{trust}\n')

    def start(self, name: str, program: str, *options: str, inside: Sequence[str] = (), **environment: str) -> None:
        command = [*inside, flower.program(program, self.connection.environment), *options]
        with self.log(name).open("ab") as sink:
            self.processes[name] = subprocess.Popen(
                command,
                env={**self.connection.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def said(self, name: str, text: str) -> bool:
        return self.log(name).exists() and text in " ".join(self.log(name).read_text(errors="replace").split())

    def start_superlink(self) -> None:
        tls = self.root / "tls"
        secure = ["--ssl-ca-certfile", tls / "ca.crt", "--ssl-certfile", tls / "server.pem"]
        secure += ["--ssl-keyfile", tls / "server.key", "--enable-supernode-auth"]
        everywhere = "0.0.0.0" if self.server_inside else HOST
        options = [*(secure if self.tls else ["--insecure"]), "--host", everywhere, "--port", self.port]
        options += self._isolation()
        options += ["--database", self.root / "superlink.db", "--disable-runtime-dependency-installation"]
        self.start("superlink", "flower-superlink", *map(str, options), inside=self.server_inside)
        until(lambda: self.said("superlink", "Uvicorn running"), 90, "the start of the SuperLink")
        if self.tls:
            trust = ["--root-certificates", str(tls / "ca.crt")]
            self._start_superexec("serverapp", *trust, port=self.port, inside=self.server_inside)

    def make_key(self, name: str) -> Path:
        certs("node", self.root / "keys" / name)
        return self.root / "keys" / f"{name}.pub"

    def register(self, *publics: Path) -> None:
        """Let keys in, side by side: a command takes seconds."""
        command = [flower.program("flwr", self.connection.environment), "supernode", "register"]
        asked = [
            subprocess.Popen(
                [*command, str(public), NAME],
                env=dict(self.connection.environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for public in publics
        ]
        for one in asked:
            said, _ = one.communicate(timeout=180)
            assert one.returncode == 0, said

    def start_node(
        self,
        name: str,
        node_config: Mapping[str, Any],
        *,
        ca: Path | None = None,
        host: str | None = None,
        inside: Sequence[str] = (),
        works: bool = True,
        **env: str,
    ) -> None:
        """Start a SuperNode, with the key that bears its name where there is TLS; ``host`` is the server's for it.

        One that never gets a message does without an app: it does not ``work``.
        """
        trust = ["--root-certificates", str(ca or self.root / "tls" / "ca.crt")]
        secure = [*trust, "--auth-supernode-private-key", str(self.root / "keys" / name)]
        texts = (
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in node_config.items()
        )
        options = [*(secure if self.tls else ["--insecure"]), "--superlink", f"{host or HOST}:{self.port}"]
        port = free_port()
        options += [*self._isolation(), "--host", HOST, "--port", str(port), "--node-config", " ".join(texts)]
        env = {"FLWR_HOME": str(self.root / f"flwr-{name}"), **env}
        self.start(name, "flower-supernode", *options, inside=inside, **env)
        if self.tls and works:
            self._start_superexec(f"{name}-app", "--insecure", port=port, inside=inside, **env)

    def _isolation(self) -> list[str]:
        return ["--isolation", "process", "--superexec-auth-secret-file", str(self.secret)] if self.tls else []

    def _start_superexec(self, name: str, *trust: str, port: int, inside: Sequence[str], **env: str) -> None:
        options = [*trust, "--runtime-api-address", f"{HOST}:{port}", "--superexec-auth-secret-file", str(self.secret)]
        self.start(name, "flower-superexec", *options, inside=inside, **env)

    def await_nodes(self, *names: str) -> None:
        for name in names:
            until(lambda name=name: self.said(name, "SuperNode ID:"), 120, f"the start of node '{name}'")

    def node_id(self, name: str) -> str:
        """Return the id that the SuperLink gave a node."""
        found = re.search(r"SuperNode ID: (\d+)", self.log(name).read_text())
        assert found, f"node '{name}' has no id"
        return found[1]

    def run(self, values: Mapping[str, Any], look: Callable[[], None] = lambda: None) -> RunStatus:
        """Make a run to its end, calling ``look`` while it goes on; its log is ``logs/run.log``."""
        run_id = flower.submit(self.connection, REPOSITORY, values, None)
        with (
            self.log("run").open("ab") as sink,
            flower.log_stream(self.connection, run_id, sink) as stream,
        ):
            return follow(self.connection, run_id, stream, look)

    def stop(self, name: str, *, kill: bool = False) -> None:
        process = self.processes.pop(name)
        process.kill() if kill else process.terminate()
        process.wait(timeout=30)

    def close(self) -> list[str]:
        """Ask every process to end, nodes first, and return what is still there after 20 seconds; then end that."""
        try:
            for process in reversed(self.processes.values()):
                process.terminate()
            for process in self.processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
            deadline = time.monotonic() + 20
            while (left := marked_processes(self.mark)) and time.monotonic() < deadline:
                time.sleep(0.2)
            return [" ".join(process.cmdline()) for process in left]
        finally:
            end_marked(self.mark)
