"""`hyperlora report` and `hyperlora compare`: one HTML page that needs no network, or the numbers behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli.output import CommandError, OutputFormat, print_table, reports_errors, say


@reports_errors
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.")],
    to: Annotated[Path | None, typer.Option(help="File to write (one run only); RUN/report.html if none.")] = None,
    against: Annotated[Path | None, typer.Option(help="Base run, as one of FedIT: the gain of each client.")] = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="text writes the page.")] = OutputFormat.TEXT,
) -> None:
    """Write one self-contained HTML page for each run.

    Examples:

        hyperlora report runs/latest

        hyperlora report runs/latest --against runs/fedit

        hyperlora report runs/latest --format json
    """
    from hyperlora.cli.report_files import run_figures, write_report  # torch takes seconds to import

    if to and len(runs) > 1:
        raise CommandError("--to names one file: give one run, or compare several with: hyperlora compare")
    if output is OutputFormat.JSON:
        figures = [run_figures(run, against) for run in runs]
        say(json.dumps(figures[0] if len(figures) == 1 else figures))
        return
    for run in runs:
        say(str(write_report(run, to, against)))


@reports_errors
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run directories.")],
    to: Annotated[Path, typer.Option(help="Page to write.")] = Path("comparison.html"),
    output: Annotated[OutputFormat, typer.Option("--format", help="json prints the figures only.")] = OutputFormat.TEXT,
) -> None:
    """Show runs beside each other: a table here, a page in a file. Gains are over FedIT where one of them is that.

    Examples:

        hyperlora compare runs/hyperlora runs/fedit

        hyperlora compare runs/* --format json
    """
    from hyperlora.cli.report_files import compare_runs, write_comparison
    from hyperlora.reporting.comparison import SUMMARY, summary_rows

    if len(runs) < 2:
        raise CommandError("a comparison needs two runs or more; the page of one is made by: hyperlora report")
    figures = compare_runs(runs)
    if output is OutputFormat.JSON:
        say(json.dumps(figures))
        return
    print_table(SUMMARY, summary_rows(figures))
    say(str(write_comparison(runs, to)))
