"""What `hyperlora report` and `hyperlora compare` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperlora.cli.expected import as_command_errors
from hyperlora.reporting.comparison import comparison_figures, comparison_page
from hyperlora.reporting.figures import figures_of
from hyperlora.reporting.paired import paired_figures
from hyperlora.reporting.report import report_page
from hyperlora.reporting.run_files import RunFiles


def write_report(directory: Path, to: Path | None, against: Path | None = None) -> Path:
    """Write the page of a run, paired with another if there is one, and return its file; raises CommandError."""
    with as_command_errors():
        run, base = RunFiles.open(directory), RunFiles.open(against) if against else None
        return _write(to or run.path / "report.html", report_page(run, base).html())


def run_figures(directory: Path, against: Path | None = None) -> dict[str, Any]:
    """Return the numbers of a run's report; raises CommandError."""
    with as_command_errors():
        run = RunFiles.open(directory)
        paired = {"paired": paired_figures(run, RunFiles.open(against))} if against else {}
        return figures_of(run) | paired


def write_comparison(directories: Sequence[Path], to: Path) -> Path:
    """Write the page that compares runs and return its file; raises CommandError."""
    with as_command_errors():
        return _write(to, comparison_page([RunFiles.open(one) for one in directories]).html())


def compare_runs(directories: Sequence[Path]) -> dict[str, Any]:
    """Return the numbers of a comparison; raises CommandError."""
    with as_command_errors():
        return comparison_figures([RunFiles.open(one) for one in directories])


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path.absolute()
