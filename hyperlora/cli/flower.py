"""The `flwr` commands that a run needs, each as a function, and how a run is followed to its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hyperlora.cli.output import CommandError, one_line
from hyperlora.config.schema import Scalar
from hyperlora.storage.files import write_text
from hyperlora.storage.run_names import ERROR

NO_DETAILS = ("", "N/A")
LOOK_EVERY, ASK_EVERY = 0.2, 3.0
CHATTER = ("Using SuperLink:", "Displaying information", "Stopping run")


@dataclass(frozen=True)
class Connection:
    """A SuperLink by its name in the Flower configuration, and the environment to speak to it in."""

    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands, in Flower's words."""

    status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.status.startswith("finished:")

    @property
    def completed(self) -> bool:
        """Whether the run has ended well."""
        return self.status == "finished:completed"


def base_environment() -> dict[str, str]:
    """Return this process's environment with Flower's programs on PATH and without its side traffic."""
    environment = dict(os.environ)
    folder = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", "")])
    environment.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    environment.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    environment.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    return environment


def program(name: str, environment: Mapping[str, str]) -> str:
    """Return the path of one of Flower's programs."""
    path = shutil.which(name, path=environment["PATH"])
    if path is None:
        raise CommandError(f"the program '{name}' is missing next to {sys.executable}: install flwr[simulation]")
    return path


def submit(connection: Connection, app_dir: Path, values: Mapping[str, Scalar], simulation: str | None) -> str:
    """Start a run of the app with the configuration ``values`` and return the run's id."""
    with tempfile.TemporaryDirectory(prefix="hyperlora-") as folder:
        config = Path(folder) / "config.toml"
        write_text(config, to_toml(values), durable=False)
        options = ["--run-config", str(config)] + (["--federation-config", simulation] if simulation else [])
        return str(_flwr(connection, "run", str(app_dir), connection.name, *options)["run-id"])


def status(connection: Connection, run_id: str) -> RunStatus:
    """Return where a run stands."""
    run = _flwr(connection, "list", "--run-id", run_id, connection.name)["runs"][0]
    details = one_line(str(run.get("status-details", "")))
    return RunStatus(run["status"], "" if details in NO_DETAILS else details)


def stop(connection: Connection, run_id: str) -> None:
    """Stop a run."""
    _flwr(connection, "stop", run_id, connection.name)


@contextmanager
def log_stream(connection: Connection, run_id: str, to: IO[bytes] | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that writes the run's log to ``to``, or to the terminal, and ends with the run."""
    process = subprocess.Popen(
        [program("flwr", connection.environment), "log", run_id, connection.name, "--stream"],
        env=dict(connection.environment),
        stdin=subprocess.DEVNULL,
        stdout=to,
        stderr=subprocess.STDOUT if to else None,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


class Tail:
    """The lines that are appended to a text file from now on; the file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """Return the complete lines written since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            complete = file.read().rpartition(b"\n")[0]
        if not complete:
            return []
        self._position += len(complete) + 1
        return complete.decode("utf-8", errors="replace").splitlines()


def follow(connection: Connection, run_id: str, log: subprocess.Popen[bytes], look: Callable[[], None]) -> RunStatus:
    """Call ``look`` until the run has ended and return how it ended.

    The log stream ends with the run, which costs nothing to notice; each question to Flower costs about
    two seconds of a CPU, so it is asked only after that.
    """
    while log.poll() is None:
        look()
        time.sleep(LOOK_EVERY)
    while not (state := status(connection, run_id)).finished:
        look()
        time.sleep(ASK_EVERY)
    look()
    return state


def failure(state: RunStatus, output_dir: Path | None, since: float) -> str:
    """Return one sentence that says why a run failed.

    The ServerApp's own ``error.txt``, if it was written after ``since``, knows best; then Flower's details.
    """
    written = output_dir / ERROR if output_dir else None
    if written and written.is_file() and written.stat().st_mtime >= since:
        reason = written.read_text(encoding="utf-8", errors="replace").strip()
        if reason:
            return reason
    return f"the run ended as {state.status}" + (f": {state.details}" if state.details else "")


def to_toml(values: Mapping[str, Scalar]) -> str:
    """Return flat values as TOML."""
    return "".join(f"{name} = {_literal(value)}\n" for name, value in values.items())


def _literal(value: Scalar) -> str:
    if isinstance(value, float):
        return repr(value)  # JSON has no inf and nan, TOML has them as Python writes them
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _flwr(connection: Connection, command: str, *arguments: str) -> dict[str, Any]:
    """Run a flwr command in a session of its own, so that Ctrl-C does not reach it, and return its JSON."""
    finished = subprocess.run(
        [program("flwr", connection.environment), command, *arguments, "--format", "json"],
        env=dict(connection.environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    answer = _first_object(finished.stdout)
    if not answer.get("success"):
        reason = answer.get("error-message") or finished.stderr or finished.stdout or "it said nothing"
        raise CommandError(f"flwr {command} failed: {_essence(str(reason))}")
    return answer


def _first_object(text: str) -> dict[str, Any]:
    try:
        answer, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    except ValueError:
        return {}
    return dict(answer)


def _essence(message: str) -> str:
    """Return what Flower says without the progress lines that it puts in front of an error."""
    lines = (line.strip() for line in message.splitlines())
    return one_line(" ".join(line for line in lines if not line.startswith(CHATTER)))
