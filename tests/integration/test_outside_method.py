"""The method that CONTRIBUTING shows, FedProx-LoRA, from outside the package: settings, server half and client half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.local_grid import LocalGrid
from client_app.app import app
from server_app.run import run

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SMALL = {
    "data.clients-per-domain": 2,
    "data.unseen-fraction": 0.5,
    "federation.clients-per-round": 3,
    "federation.rounds": 2,
    "federation.evaluate-every": 2,
    "train.local-steps": 4,
    "train.batch-size": 8,
}


def training(directory: Path, method: str, **values: float) -> list[dict[str, Any]]:
    settings = {**SMALL, "method": method, "run.output-dir": str(directory / f"run-{len(values)}-{method}"), **values}
    lines = (run(LocalGrid(app, settings, 2), settings) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["training"] for line in lines]


def test_a_method_from_outside_brings_settings_and_client_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    fedit = training(tmp_path, "fedit")
    assert training(tmp_path, "fedprox_lora", **{"fedprox.mu": 0.0}) == fedit
    held = training(tmp_path / "held", "fedprox_lora", **{"fedprox.mu": 1000.0})
    gains = [rounds[0]["start_loss"]["mean"] - rounds[0]["end_loss"]["mean"] for rounds in (held, fedit)]
    assert held[0]["start_loss"] == fedit[0]["start_loss"]
    assert abs(gains[0]) < 0.5 * abs(gains[1])
