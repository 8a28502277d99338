"""`hyperlora audit`: whether an audit log or a privacy ledger is as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli.output import CommandError, OutputFormat, reports_errors, say

LOGS = ("audit.jsonl", "releases.jsonl")
"""What is looked for in a folder: of a run directory the first, of a site's folder both."""
app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_show_locals=False, help="Audit logs of a server or a site, and its ledger."
)


@app.callback()
def audit() -> None:
    """Audit logs of a server or a site, and its ledger."""


@app.command()
@reports_errors
def verify(
    path: Annotated[Path, typer.Argument(help="A log, a run directory, or a site's folder STATE-DIR/CLIENT.")],
    known: Annotated[
        list[str] | None, typer.Option(help="A digest from an earlier check that must still be in the log; repeatable.")
    ] = None,
    output: Annotated[OutputFormat, typer.Option("--format", help="How the result is printed.")] = OutputFormat.TEXT,
) -> None:
    """Check that no line of a log was changed, removed or reordered; exit with status 1 if one was.

    Lines cut off the end, and a log rewritten from scratch, are detected only with --known.

    Examples:

        hyperlora audit verify runs/latest

        hyperlora audit verify state/clean-0 --known 5f1c...
    """
    from hyperlora.storage.chained_log import BEGIN, ChainedLog

    files = [path / name for name in LOGS if (path / name).exists()] if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise CommandError(f"'{path}' is no log and holds none of {', '.join(LOGS)}")
    found = {file: ChainedLog(file).read() for file in files}
    digests = {entry["digest"] for entries in found.values() for entry in entries}
    missing = [digest for digest in known or [] if digest not in digests]
    if missing:
        raise CommandError(f"'{path}' was cut or written anew: it has no line with the digest {missing[0]}")
    ends = {file: entries[-1]["digest"] if entries else BEGIN for file, entries in found.items()}
    if output is OutputFormat.JSON:
        say(json.dumps({str(file): {"lines": len(found[file]), "last": ends[file]} for file in files}))
        return
    for file in files:
        say(f"{file}: {len(found[file])} lines, each follows from the line before; last digest {ends[file]}")
