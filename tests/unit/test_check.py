"""`hyperlora check`: what clients hold, what is bad, and what a run will cost, before anything starts."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from client_app.runtime import open_runtime
from hyperlora.cli.estimate import Estimate, estimate
from hyperlora.cli.main import app
from hyperlora.config.schema import RunConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(90):
        path = tmp_path / "photos" / ("cat", "dog")[index % 3 == 0] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (2 * index, 255 - index, 90)).save(path)
    (tmp_path / "photos" / "dog" / "00.png").write_bytes(b"no image")
    (tmp_path / "photos.toml").write_text(
        f'data = {{ name = "folder", path = "{tmp_path / "photos"}", partition = "iid", clients-per-domain = 3 }}'
    )
    return tmp_path / "photos.toml"


def check(*arguments: object, status: int = 0) -> str:
    outcome = CliRunner().invoke(app, ["check", "--app-dir", str(ROOT), *map(str, arguments)])
    assert outcome.exit_code == status, outcome.output
    return outcome.output


def test_it_tells_samples_by_client_and_class_bad_files_and_the_cost(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        said = check(photos)
    assert "3 clients hold 89 samples of 2 classes" in said
    rows = [line.split() for line in said.splitlines() if line.startswith("all-")]
    assert [row[1] for row in rows] == ["yes", "yes", "never"]
    assert sum(int(row[5]) for row in rows) == 60
    assert sum(int(row[6]) for row in rows) == 29
    assert all(int(row[2]) + int(row[3]) + int(row[4]) == int(row[5]) + int(row[6]) for row in rows)
    assert "dog/00.png" in caplog.text
    assert "KiB; a round sends" in said
    assert re.search(r"memory: \d+ client processes and the server's take about \d+\.\d GiB each", said)


def test_what_a_run_would_refuse_is_refused(photos: Path) -> None:
    assert "too few for 30 clients" in check(photos, "-c", "data.clients-per-domain=30", status=1)
    assert "is texts" in check("-c", "data.name=csv", "-c", f"data.path={photos}", status=1)


def test_bytes_and_memory_are_those_of_the_model() -> None:
    runtime = open_runtime(RunConfig.parse({"lora.rank": 3}))
    found = estimate(runtime, runtime.federation.client_ids, samples=1000, cohort=8)
    adapter = runtime.model.fresh_adapter(0)
    assert found.adapter_bytes == sum(tensor.nbytes for tensor in adapter.tensors().values())
    tokens = runtime.tokens("clean-0", "train").tokens
    assert found.kept_bytes == tokens[0].nbytes * 1000
    assert found.process_bytes > 0.9 * psutil.Process().memory_info().rss
    assert found.processes == min(20, os.cpu_count() or 1)
    assert min(found.embedding, found.round_seconds, found.evaluation_seconds) > 0


def test_the_memory_of_a_run_has_its_processes_and_flower() -> None:
    found = Estimate(0, 5.0, 2.0, 7.0, adapter_bytes=0, process_bytes=3 * 2**30, processes=4)
    assert found.memory_bytes == (5 * 3 + 1) * 2**30


def test_the_time_of_a_run_has_its_evaluations() -> None:
    found = Estimate(0, embedding=5.0, round_seconds=2.0, evaluation_seconds=7.0, adapter_bytes=0)
    assert found.total_seconds(rounds=10, evaluations=3) == 5 + 20 + 21
