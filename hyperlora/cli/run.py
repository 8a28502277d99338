"""`hyperlora run`: run a Flower app to its end, show its progress, and end with its true status."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout

from hyperlora.cli import flower
from hyperlora.cli.flower import Connection, RunStatus, Tail, failure, follow
from hyperlora.cli.output import CommandError, reports_errors, say, waiting
from hyperlora.cli.processes import Interrupted, interruptible, shielded
from hyperlora.cli.settings import Settings, new_output_dir, read_settings, require_inputs
from hyperlora.cli.superlink import local_superlink, simulation_size
from hyperlora.storage.files import PRIVATE_DIRECTORY


@reports_errors
def run(
    app_dir: Annotated[Path, typer.Argument(help="Directory of the Flower app.")] = Path(),
    config: Annotated[list[Path] | None, typer.Option(help="TOML file whose values replace those of the app.")] = None,
    override: Annotated[list[str] | None, typer.Option("-c", help="One value, as key=value.")] = None,
    method: Annotated[str | None, typer.Option(help="Federated method.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Run directory; by default a new one under ./runs.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
    supernodes: Annotated[int | None, typer.Option(min=1, help="Simulated nodes.")] = None,
    cpus_per_client: Annotated[int, typer.Option(min=1, help="CPUs for each client.")] = 1,
    gpus_per_client: Annotated[float, typer.Option(min=0, help="Share of a GPU for each client.")] = 0,
    superlink: Annotated[str | None, typer.Option(help="Use this SuperLink of your Flower configuration.")] = None,
) -> None:
    """Run the app: in a simulation on this machine, or on a SuperLink that you name.

    Examples:

        hyperlora run --method fedit --seed 1

        hyperlora run -c lora.rank=8 -c federation.rounds=10

        hyperlora run --resume runs/first -c federation.rounds=60
    """
    from hyperlora.task import expected_clients  # torch takes seconds to import

    options = {"method": method, "seed": seed, "run.output-dir": str(output_dir) if output_dir else None}
    settings = read_settings(app_dir.absolute(), config or [], override or [], options, resume)
    if superlink:
        size = simulation_size(supernodes, cpus_per_client, gpus_per_client) if supernodes else None
        submit_elsewhere(settings, superlink, size)
    else:
        nodes = supernodes or expected_clients(settings.config.data)
        simulate(settings, simulation_size(nodes, cpus_per_client, gpus_per_client))


def simulate(settings: Settings, size: str) -> None:
    """Run the app in a simulation on this machine that leaves nothing running.

    Raises:
        CommandError: when the run did not complete.
    """
    require_inputs(settings.config)
    output_dir, since = _output_dir(settings), time.time()
    with stoppable(f"the results so far lie in {output_dir}"), claimed(output_dir):
        state = _simulate(settings, size, output_dir)
    if not state.completed:
        raise CommandError(f"{failure(state, output_dir, since)} (log: {output_dir / 'flower.log'})")
    say(f"results: {output_dir}")


def _simulate(settings: Settings, size: str, output_dir: Path) -> RunStatus:
    values = {**settings.values, "run.output-dir": str(output_dir)}
    log, tail = output_dir / "flower.log", Tail(output_dir / "console.log")
    with waiting("starting Flower simulation") as spinner_off, local_superlink(log) as connection:
        run_id = flower.submit(connection, settings.app_dir, values, size)
        with log.open("ab") as sink, flower.log_stream(connection, run_id, sink) as stream:
            return follow(connection, run_id, stream, look=_printer(tail, spinner_off))


def _output_dir(settings: Settings) -> Path:
    wanted = settings.config.run.output_dir
    path = Path(wanted) if wanted else new_output_dir(settings.config, Path.cwd() / "runs", datetime.now())
    if (path / "metrics.jsonl").exists() and not settings.config.run.resume:
        raise CommandError(f"run directory '{path}' already holds a run: name a new one, or go on with --resume {path}")
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"run directory '{path}' cannot be made: {error.strerror}") from error
    return path


@contextmanager
def claimed(output_dir: Path) -> Iterator[None]:
    """Keep a second command out of the run directory, before it writes to the log of the first.

    Raises:
        CommandError: another command writes to it.
    """
    lock = FileLock(output_dir / ".command.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CommandError(f"another run writes to '{output_dir}': let it end, or name another directory") from None
    try:
        yield
    finally:
        lock.release()


def _printer(tail: Tail, spinner_off: Callable[[], None]) -> Callable[[], None]:
    def look() -> None:
        for line in tail.new_lines():
            spinner_off()
            say(line)

    return look


def submit_elsewhere(settings: Settings, superlink: str, size: str | None) -> None:
    """Run the app on a SuperLink of the user's own Flower configuration; start and end nothing else.

    Paths in the configuration are those of the SuperLink's and the clients' machines.

    Raises:
        CommandError: when the run did not complete.
    """
    connection, since = Connection(superlink, flower.base_environment()), time.time()
    output_dir = Path(settings.config.run.output_dir) if settings.config.run.output_dir else None
    with stoppable(f"the results so far lie in {output_dir or 'the run directory of the SuperLink'}"):
        run_id = flower.submit(connection, settings.app_dir, settings.values, size)
        say(f"run {run_id} on {superlink}")
        state = _follow_elsewhere(connection, run_id)
    if not state.completed:
        raise CommandError(failure(state, output_dir, since))


def _follow_elsewhere(connection: Connection, run_id: str) -> RunStatus:
    try:
        with flower.log_stream(connection, run_id, to=None) as stream:
            return follow(connection, run_id, stream, look=lambda: None)
    except Interrupted:
        with shielded():
            flower.stop(connection, run_id)
        raise


@contextmanager
def stoppable(where: str) -> Iterator[None]:
    """Let an ending signal end the block, say so in one line, and exit with the signal's status."""
    try:
        with interruptible():
            yield
    except Interrupted as ending:
        say(f"stopped; {where}", style="yellow", stderr=True)
        raise typer.Exit(ending.status) from None
