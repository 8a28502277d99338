"""`hyperlora report` and `hyperlora compare`: one HTML page that needs no network, or the numbers behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlora.cli.output import CommandError, OutputFormat, print_table, reports_errors, say
from hyperlora.storage.files import write_text
from hyperlora.storage.run_names import followed

if TYPE_CHECKING:
    from hyperlora.reporting.page import Page


@reports_errors
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.")],
    to: Annotated[Path | None, typer.Option(help="File to write (single run); RUN/report.html by default.")] = None,
    against: Annotated[Path | None, typer.Option(help="Baseline run, to show the gain of each client over it.")] = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="text writes the page.")] = OutputFormat.TEXT,
) -> None:
    """Write one self-contained HTML page for each run.

    Examples:

        hyperlora report runs/latest

        hyperlora report runs/latest --against runs/fedit

        hyperlora report runs/latest --format json
    """
    from hyperlora.reporting.figures import figures_of, paired_figures  # torch takes seconds to import
    from hyperlora.reporting.report import report_page
    from hyperlora.reporting.run_files import RunFiles

    _check_output(to, output)
    if to and len(runs) > 1:
        raise CommandError("--to names one file: give one run, or compare several with: hyperlora compare")
    base = RunFiles.open(against) if against else None
    opened = map(RunFiles.open, _each_once(runs))
    if output is OutputFormat.JSON:
        figures = [figures_of(run) | ({"paired": paired_figures(run, base)} if base else {}) for run in opened]
        say(json.dumps(figures[0] if len(figures) == 1 else figures))
        return
    for run in opened:
        _write_page(to or run.path / "report.html", report_page(run, base))


@reports_errors
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run directories.")],
    to: Annotated[Path | None, typer.Option(help="HTML page to write besides the printed table.")] = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="json prints the figures only.")] = OutputFormat.TEXT,
) -> None:
    """Compare runs in a table and, with --to, on an HTML page.

    Gains are relative to the first FedIT run or, if there is none, to the first run.

    Examples:

        hyperlora compare runs/hyperlora runs/fedit --to comparison.html

        hyperlora compare runs/* --format json
    """
    from hyperlora.reporting.comparison import SUMMARY, comparison_page, other_data_notes, summary_rows
    from hyperlora.reporting.figures import comparison_figures
    from hyperlora.reporting.run_files import RunFiles

    _check_output(to, output)
    runs = _each_once(runs)
    if len(runs) < 2:
        raise CommandError("a comparison needs two runs or more; for the page of a single run: hyperlora report")
    opened = [RunFiles.open(run) for run in runs]
    figures = comparison_figures(opened)
    if output is OutputFormat.JSON:
        say(json.dumps(figures))
        return
    print_table(SUMMARY, summary_rows(figures))
    for note in other_data_notes(figures):
        say(note, style="yellow", stderr=True)
    if to:
        _write_page(to, comparison_page(opened))


def _check_output(to: Path | None, output: OutputFormat) -> None:
    if to and output is OutputFormat.JSON:
        raise CommandError("--format json prints figures and writes no page: leave out --to")


def _each_once(runs: list[Path]) -> list[Path]:
    """Return run directories without a second mention, as ``runs/*`` has of the one that ``runs/latest`` points to."""
    return [run for run in runs if followed(run) == run or followed(run) not in runs]


def _write_page(path: Path, page: Page) -> None:
    write_text(path, page.html())
    say(str(path.absolute()))
