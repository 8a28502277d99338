"""A short run on digits that several tests read, and a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.local_grid import LocalGrid
from client_app import runtime
from client_app.app import app as client_app
from hyperlora.config.schema import RunConfig
from server_app.run import run
from tests.browser import open_browser
from tests.sums_runs import Recording, made

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


@pytest.fixture(scope="session")
def sums_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording]:
    """The directory of a finished run of sums, and the grid that it ran on; neither is to be changed."""
    return made(tmp_path_factory.mktemp("sums") / "run")


@pytest.fixture(scope="module")
def every_site_keeps_its_parts() -> Iterator[None]:
    """Let a process serve eight sites without opening the data of one anew for every message."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runtime, "_open_parts", lru_cache(maxsize=8)(runtime._open_parts.__wrapped__))
        yield


@pytest.fixture
def metrics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test's own runs write no adapters and no figures."""
    monkeypatch.setattr("server_app.run.save_accuracy", lambda *_: None)
    monkeypatch.setattr("server_app.run._Run._save_adapters", lambda *_: None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from open_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(os.environ.get("HYPERLORA_ARTEFACTS") or tmp_path_factory.mktemp("screenshots"))
    path.mkdir(parents=True, exist_ok=True)
    return path
