"""``python -m benchmarks SUITE``: run what is not there yet, then print the table."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.perf.run import run_perf
from benchmarks.pool import run_all
from benchmarks.run_job import is_there
from benchmarks.suite import SuiteError, load_jobs
from benchmarks.table import accuracy_table, cost_table, load_results, paired_table, parts_table, steps_table
from cli.output import CommandError
from cli.settings import PATH_KEYS, absolute, parse_override
from protocol.config import ConfigError

app = typer.Typer(add_completion=False)
console = Console()
RESULTS = Path(__file__).parent / "results"


@app.command()
def main(
    suite: Annotated[str, typer.Argument(help="name of a file in benchmarks/suites, for example digits; or perf")],
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for every run")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="seed to run instead of the suite's; may be repeated")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="variant to run; may be repeated; all by default")] = None,
    results: Annotated[Path, typer.Option(help="folder of the json files")] = RESULTS,
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time, one core each")] = 2,
) -> None:
    """Run a suite's missing runs, then print its tables; differences are to the suite's first variant."""
    logging.basicConfig(level=logging.WARNING)
    if suite == "perf":
        raise typer.Exit(0 if run_perf(variant or [], results / suite, _say) else 1)
    try:
        overrides = dict(parse_override(one) for one in override or [])
        overrides |= {name: absolute(overrides[name]) for name in PATH_KEYS if name in overrides}
        wanted = load_jobs(suite, overrides, seed or [], variant or [])
    except (SuiteError, ConfigError, CommandError) as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    folder = results / suite
    missing = [job for job in wanted if not is_there(job, folder / f"{job.name}.json")]
    console.print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are there, {len(missing)} to do")
    failed = run_all(missing, folder, jobs, say=console.print)
    order = list(dict.fromkeys(job.variant for job in wanted))
    found = load_results(folder)
    if not found:
        raise typer.Exit(1)
    tables = [accuracy_table(found, order), paired_table(found, order, order[0])]
    for table in [*tables, steps_table(found, order), parts_table(found, order), cost_table(found, order)]:
        if table:
            console.print(table + "\n", markup=False, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
