"""`hyperlora doctor`: what this machine has, what is wrong with it and the flag or command that puts it right."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hyperlora.cli.output import OutputFormat, print_table, reports_errors, say


@reports_errors
def doctor(
    output: Annotated[OutputFormat, typer.Option("--format", help="json for scripts.")] = OutputFormat.TEXT,
) -> None:
    """Check versions, cores, GPUs, ports, disk and backbones; status 1 where something is wrong.

    Examples:

        hyperlora doctor

        hyperlora doctor --format json
    """
    from hyperlora.cli.checks import Status, all_findings  # torch takes seconds to import

    findings = list(all_findings())
    if output is OutputFormat.JSON:
        say(json.dumps([asdict(one) for one in findings]))
    else:
        print_table(("check", "", "found"), [(one.check, one.status, one.found) for one in findings])
        for one in findings:
            if one.fix:
                say(f"{one.check}: {one.fix}", style="red" if one.status is Status.WRONG else "yellow")
    if any(one.status is Status.WRONG for one in findings):
        raise typer.Exit(1)
