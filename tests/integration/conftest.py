"""A short run on digits that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from hyperlora.config.schema import RunConfig
from server_app.run import run

SHORT = {
    "federation.rounds": 3,
    "federation.evaluate-every": 2,
    "federation.clients-per-round": 6,
    "hyperlora.probe-clients": 4,
}


def make_short_run(directory: Path, **overrides: bool | float | str) -> Path:
    values = RunConfig.parse({**SHORT, "run.output-dir": str(directory), **overrides}).flat()
    return run(LocalGrid(client_app, values, 4), values)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run; not to be written to."""
    return make_short_run(tmp_path_factory.mktemp("short") / "run")
