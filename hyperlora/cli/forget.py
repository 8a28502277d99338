"""`hyperlora forget`: take a client out of a run that is stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli.output import OutputFormat, reports_errors, say


@reports_errors
def forget(
    run: Annotated[Path, typer.Argument(help="Directory of a run that is stopped.")],
    client: Annotated[str, typer.Argument(help="Client-id.")],
    output: Annotated[OutputFormat, typer.Option("--format", help="How the result is printed.")] = OutputFormat.TEXT,
) -> None:
    """Remove a client from a stopped run, and report what cannot be unlearned.

    To continue the run afterwards: hyperlora run --resume RUN. Revoke the client's permission first (delete its entry
    from the allow-list), or it will join again.

    Examples:

        hyperlora forget runs/latest clean-0
    """
    from server_app.forgetting import forget_client  # torch takes seconds to import

    done = forget_client(run, client)
    if output is OutputFormat.JSON:
        say(json.dumps(asdict(done)))
        return
    say(f"client '{client}' is out of the run; its last checkpoint is of round {done.server_round}; dropped:")
    for part in done.dropped:
        say(f"  {part}")
    say("not unlearned:")
    for part in done.stays:
        say(f"  {part}")
