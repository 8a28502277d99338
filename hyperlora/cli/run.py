"""`hyperlora run`: run a Flower app to its end, show its progress, and end with its true status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli.execution import simulate, submit_elsewhere
from hyperlora.cli.expected import as_command_errors
from hyperlora.cli.output import reports_errors
from hyperlora.cli.settings import read_settings
from hyperlora.cli.superlink import simulation_size
from hyperlora.config.schema import RunConfig
from hyperlora.task import expected_clients


@reports_errors
def run(
    app_dir: Annotated[Path, typer.Argument(help="Directory of the Flower app.")] = Path(),
    config: Annotated[list[Path] | None, typer.Option(help="TOML file laid over the app's configuration.")] = None,
    override: Annotated[list[str] | None, typer.Option("-c", help="One value, as key=value.")] = None,
    method: Annotated[str | None, typer.Option(help="Federated method.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Run directory; a new one under ./runs if none.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
    supernodes: Annotated[int | None, typer.Option(min=1, help="Simulated nodes.")] = None,
    cpus_per_client: Annotated[int, typer.Option(min=1, help="CPUs of one client.")] = 1,
    gpus_per_client: Annotated[float, typer.Option(min=0, help="Share of a GPU of one client.")] = 0,
    superlink: Annotated[str | None, typer.Option(help="Use this SuperLink of your Flower configuration.")] = None,
) -> None:
    """Run the app: in a simulation on this machine, or on a SuperLink that you name.

    Examples:

        hyperlora run --method fedit --seed 1

        hyperlora run -c lora.rank=8 -c federation.rounds=10

        hyperlora run --resume runs/first -c federation.rounds=60
    """
    options = {"method": method, "seed": seed, "run.output-dir": str(output_dir) if output_dir else None}
    settings = read_settings(app_dir.absolute(), config or [], override or [], options, resume)
    if superlink:
        size = simulation_size(supernodes, cpus_per_client, gpus_per_client) if supernodes else None
        submit_elsewhere(settings, superlink, size)
    else:
        nodes = supernodes or default_supernodes(settings.config)
        simulate(settings, simulation_size(nodes, cpus_per_client, gpus_per_client))


def default_supernodes(config: RunConfig) -> int:
    """Return how many nodes a simulation gets: one for each client that the data are divided over.

    Raises:
        CommandError: the data cannot be read.
    """
    with as_command_errors():
        return expected_clients(config.data)
