"""`hyperlora demo`: a page on this machine where images are drawn or dropped and get an adapter."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from hyperlora.cli.output import CommandError, reports_errors, say
from hyperlora.storage.run_names import DEMO


@reports_errors
def demo(
    run: Annotated[Path, typer.Argument(help="Run directory; by default the federation in the package.")] = Path(DEMO),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8642,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Open a local demo page: draw digits or drop image files, and see the adapter that is generated for them.

    Examples:

        hyperlora demo

        hyperlora demo runs/latest --port 0 --open
    """
    from hyperlora.web.server import PageServer  # torch takes seconds to import
    from hyperlora.web.workbench import Workbench

    workbench = Workbench.open(run)
    try:
        server = PageServer(workbench, port)
    except OSError as error:
        raise CommandError(
            f"port {port} of 127.0.0.1 cannot be used: {error.strerror}; choose another with --port"
        ) from error
    with server:
        say(f"{server.url} (Ctrl-C ends it)")
        if show:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped", style="yellow", stderr=True)
