"""The ServerApp: hands Flower's grid and run configuration to :func:`server_app.run.run`."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server_app.client_processes import mended_client_processes
from server_app.run import run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Make one run from its configuration to its run directory."""
    with mended_client_processes():
        run(grid, context.run_config, echo=True)
