"""``python -m benchmarks SUITE``: run what is not there yet, then print the tables and draw the figures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.claims import check, read_claims, repository_texts
from benchmarks.cost import cost_of
from benchmarks.pages import FIGURES, MORE_TABLES, TABLES, fill_pages, hours, tables_of
from benchmarks.perf.run import run_perf
from benchmarks.result import load_results, load_settings, missing_jobs, pack_runs
from benchmarks.run_job import run_all
from benchmarks.suite import (
    Job,
    chosen_settings,
    has_grid,
    load_jobs,
    split_name,
    suite_title,
    tuning_suite,
)
from benchmarks.trials import SuiteError
from benchmarks.tuning import choose
from hyperlora.cli.output import CommandError
from hyperlora.cli.settings import parse_override, with_absolute_paths
from hyperlora.config.schema import ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
console = Console()
RESULTS = Path(__file__).parent / "results"


@app.command()
def main(
    suite: Annotated[
        str,
        typer.Argument(
            help="a file in benchmarks/suites, as digits, or a choice on its axes, as paper/domainnet; "
            "or perf, pages (the tables in docs) or claims (the comparative sentences in docs)"
        ),
    ],
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for every run")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="seed to run instead of the suite's; may be repeated")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="variant to run; may be repeated; all by default")] = None,
    results: Annotated[Path, typer.Option(help="folder of the results and figures")] = RESULTS,
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time, one core each")] = 2,
    reference: Annotated[str, typer.Option(help="variant that differences are to; the first by default")] = "",
    dry: Annotated[bool, typer.Option("--dry", help="say what is missing and what it costs, and run nothing")] = False,
) -> None:
    """Run a suite's missing runs, then print its tables and draw its figures; they need the results alone."""
    logging.basicConfig(level=logging.WARNING)
    if suite in ("pages", "claims", "perf"):
        raise typer.Exit(0 if without_suite(suite, variant or [], results) else 1)
    try:
        overrides = with_absolute_paths(dict(map(parse_override, override or [])))
        wanted = load_jobs(suite, overrides, seed or [], variant or [])
    except (SuiteError, ConfigError, CommandError) as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    missing = missing_jobs(wanted, results)
    console.print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are there, {len(missing)} to do")
    if missing:
        console.print(cost_of(missing, load_settings(results, suite), jobs))
    if (tuned := tuning_suite(suite)) and not chosen_settings(tuned):
        console.print(f"[yellow]'{tuned}' was not run: rates and steps are the preset's[/yellow]")
    if dry:
        raise typer.Exit
    failed = run_all(missing, results, jobs, say=console.print)
    pack_runs(results, suite)
    if has_grid(suite):
        say(choose(split_name(suite)[0], wanted, load_settings(results, suite)))
        raise typer.Exit(1 if failed else 0)
    shown = [show(place, wanted, results, reference) for place in dict.fromkeys(job.suite for job in wanted)]
    raise typer.Exit(0 if any(shown) and not failed else 1)


def without_suite(command: str, variants: list[str], results: Path) -> bool:
    """Do what is no suite: print the pages anew, hold the claims against the results, or measure time; tell success."""
    if command == "perf":
        return run_perf(variants, results / command, say)
    if command == "pages":
        fill_pages(results, say)
        return True
    lines, faults = check(read_claims(), repository_texts(), results)
    say("\n".join([*lines, *faults, f"{len(lines) // 2} claims, {len(faults)} faults"]))
    return not faults


def show(suite: str, wanted: list[Job], results: Path, reference: str) -> bool:
    """Print the tables and draw the figures of what is there of a suite or one of its settings; tell whether any is."""
    order, found = list(dict.fromkeys(job.variant for job in wanted)), load_results(results, suite)
    if not found:
        return False
    title = [suite_title(suite)] if "/" in suite else []
    for text in [*title, *tables_of(found, order, reference or order[0], [*TABLES, *MORE_TABLES]), hours(found, order)]:
        say(text)
    name = suite.replace("/", "-")
    for kind, draw in FIGURES.items():
        draw(found, order, results / "figures" / f"{name}-{kind}.svg")
    return True


def say(text: str) -> None:
    """Print ``text`` as it is, and an empty line."""
    if text:
        console.print(text + "\n", markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
