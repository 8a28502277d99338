"""The `hyperlora` command: a file for each command, put together here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from hyperlora.cli.audit import app as audit
from hyperlora.cli.certs import app as certs
from hyperlora.cli.check import check
from hyperlora.cli.demo import demo
from hyperlora.cli.doctor import doctor
from hyperlora.cli.export import export
from hyperlora.cli.forget import forget
from hyperlora.cli.output import say
from hyperlora.cli.personalize import personalize
from hyperlora.cli.publish import publish
from hyperlora.cli.report import compare, report
from hyperlora.cli.run import run

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)
app.command()(run)
app.command()(check)
app.add_typer(certs, name="certs")
app.add_typer(audit, name="audit")
app.command()(personalize)
app.command()(demo)
app.command()(report)
app.command()(compare)
app.command()(export)
app.command()(publish)
app.command()(forget)
app.command()(doctor)


def show_version(wanted: bool) -> None:
    """Print the version and end, if that is wanted."""
    if wanted:
        try:
            say(f"hyperlora {version('hyperlora')}")
        except PackageNotFoundError:
            say("hyperlora (not installed)")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    """Federated LoRA adapters generated for every client's own data."""


if __name__ == "__main__":
    app()
