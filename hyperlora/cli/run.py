"""`hyperlora run`: run a Flower app to its end, show its progress, and end with its true status."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli import flower
from hyperlora.cli.app_directory import app_directory
from hyperlora.cli.cluster import find_cluster
from hyperlora.cli.flower import Connection, RunStatus, Tail, failure, follow
from hyperlora.cli.output import CommandError, reports_errors, say, waiting
from hyperlora.cli.preflight import check_before, held
from hyperlora.cli.processes import Interrupted, interruptible, shielded
from hyperlora.cli.settings import Settings, new_output_dir, read_settings
from hyperlora.cli.superlink import federation_size, local_superlink, simulation_size
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.storage.files import PRIVATE_DIRECTORY
from hyperlora.storage.run_names import CONSOLE, point_to


@reports_errors
def run(
    app_dir: Annotated[
        Path | None, typer.Argument(help="Flower app to run; default: the current directory, else HyperLoRA's own.")
    ] = None,
    config: Annotated[list[Path] | None, typer.Option(help="TOML file with settings; repeatable, last wins.")] = None,
    override: Annotated[list[str] | None, typer.Option("-c", help="Override a setting, key=value; repeatable.")] = None,
    method: Annotated[str | None, typer.Option(help="Federated learning method.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Run directory; by default a new one under ./runs.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the run in this directory.")] = None,
    supernodes: Annotated[int | None, typer.Option(min=1, help="Simulated nodes; default: one per client.")] = None,
    cpus_per_client: Annotated[int, typer.Option(min=1, help="CPUs for each client.")] = 1,
    gpus_per_client: Annotated[float, typer.Option(min=0, help="Share of a GPU for each client.")] = 0,
    ray_address: Annotated[
        str | None, typer.Option(help="Join this Ray cluster: HOST:PORT of its head, or auto.", envvar="RAY_ADDRESS")
    ] = None,
    superlink: Annotated[str | None, typer.Option(help="Use this SuperLink of your Flower configuration.")] = None,
) -> None:
    """Run the app: in a simulation on this machine or on a Ray cluster, or on a SuperLink that you name.

    Examples:

        hyperlora run --method fedit --seed 1

        hyperlora run -c lora.rank=8 -c federation.rounds=10

        hyperlora run --resume runs/first -c federation.rounds=60

        hyperlora run --ray-address 10.0.0.1:6379
    """
    options = {"method": method, "seed": seed, "run.output-dir": str(output_dir) if output_dir else None}
    ray_address = None if ray_address == "local" else ray_address  # Ray's word for one that is started here
    with app_directory(app_dir) as place:
        settings = read_settings(place, config or [], override or [], options, resume)
        if superlink:
            if not supernodes and (cpus_per_client, gpus_per_client) != (1, 0):
                raise CommandError("on a SuperLink --cpus-per-client and --gpus-per-client need --supernodes as well")
            size = federation_size(supernodes, cpus_per_client, gpus_per_client) if supernodes else None
            submit_elsewhere(settings, superlink, size)
        else:
            check_before(settings.config, gpus_per_client, clients_here=not ray_address)
            nodes = supernodes or _expected_clients(settings.config)
            _simulate_on(settings, ray_address, nodes, cpus_per_client, gpus_per_client)


def _simulate_on(settings: Settings, ray_address: str | None, nodes: int, cpus: int, gpus: float) -> None:
    """Run a simulation on this machine, or on the Ray cluster at an address."""
    if not ray_address:
        simulate(settings, simulation_size(nodes, cpus, gpus))
        return
    paths = [path for path in (settings.config.data.path, settings.config.model.weights) if path]
    cluster = find_cluster(ray_address, cpus, gpus, paths)
    say(cluster.described(cpus, gpus))
    simulate(settings, federation_size(nodes, cpus, gpus), cluster.address)


def _expected_clients(config: RunConfig) -> int:
    from hyperlora.task import expected_clients  # torch takes seconds to import

    return expected_clients(config.data)


def simulate(settings: Settings, size: str, ray_address: str | None = None) -> None:
    """Run the app in a simulation, on this machine or on a Ray cluster, that leaves nothing running.

    Raises:
        CommandError: when the run did not complete.
    """
    output_dir, since = _output_dir(settings), time.time()
    with stoppable(f"the results so far lie in {output_dir}"), held(output_dir):
        if output_dir.parent == runs_directory():
            point_to(output_dir)
        values = {**settings.values, "run.output-dir": str(output_dir)}
        state = _simulate(settings.app_dir, values, size, output_dir, ray_address)
    if not state.completed:
        raise CommandError(f"{failure(state, output_dir, since)} (log: {output_dir / 'flower.log'})")
    say(f"results: {output_dir}")


def _simulate(
    app_dir: Path, values: Mapping[str, Scalar], size: str, output_dir: Path, ray_address: str | None
) -> RunStatus:
    log, tail = output_dir / "flower.log", Tail(output_dir / CONSOLE)
    with waiting("starting Flower simulation") as spinner_off, local_superlink(log, ray_address) as connection:
        run_id = flower.submit(connection, app_dir, values, size)
        with log.open("ab") as sink, flower.log_stream(connection, run_id, sink) as stream:
            return follow(connection, run_id, stream, _printer(tail, spinner_off))


def runs_directory() -> Path:
    """Return where runs go that name no directory, and where ``latest`` points to the last of them."""
    return Path.cwd() / "runs"


def _output_dir(settings: Settings) -> Path:
    wanted = settings.config.run.output_dir
    path = Path(wanted) if wanted else new_output_dir(settings.config, runs_directory(), datetime.now())
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"run directory '{path}' cannot be made: {error.strerror}") from error
    return path


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
        say(f"run {run_id} on {superlink}; the paths it prints are on that machine or in its container")
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
