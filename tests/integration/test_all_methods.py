"""Every method of the table goes through all messages, with real training, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from peft import PeftModel

from benchmarks.local_grid import LocalGrid
from client_app.app import app
from hyperlora.config.methods import METHODS
from hyperlora.data.digits import digits_public
from models.backbones.loading import build_backbone
from server_app.run import run

SMALL = {
    "data.clients-per-domain": 2,
    "data.unseen-fraction": 0.5,
    "federation.clients-per-round": 3,
    "federation.rounds": 3,
    "federation.evaluate-every": 3,
    "hyperlora.probe-clients": 4,
    "train.local-steps": 3,
    "train.batch-size": 8,
    "generator.steps": 2,
}


def made(tmp_path: Path, **values: str | int | float) -> Path:
    settings = {**SMALL, "run.output-dir": str(tmp_path / "run"), **values}
    return run(LocalGrid(app, settings, 2), settings)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the run of a method with nothing changed; it is made once."""
    return cache(lambda method: made(tmp_path_factory.mktemp(method), method=method))


def figures(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_evaluates_and_leaves_adapters_that_peft_loads(
    method: str, run_of: Callable[[str], Path]
) -> None:
    directory = run_of(method)
    rounds = figures(directory)
    assert all(not one["failures"] and one["training"]["clients"] == 3 for one in rounds)
    assert {group: one["clients"] for group, one in rounds[-1]["evaluation"].items() if " " not in group} == {
        "seen": 4,
        "unseen": 4,
    }
    backbone = build_backbone(name="digits-vit", weights="", image_size=16, num_classes=10, pretraining=digits_public)
    PeftModel.from_pretrained(backbone.module, str(next((directory / "adapters").glob("*-0"))))


def sent(directory: Path, way: str) -> float:
    rounds = figures(directory)
    return sum(one["bytes"][f"train_{way}"] for one in rounds) / sum(len(one["cohort"]) for one in rounds)


def test_what_travels_is_what_the_method_says(run_of: Callable[[str], Path]) -> None:
    runs = {name: run_of(name) for name in ("fedit", "ffa-lora", "fedsa-lora", "rolora", "fed-sb")}
    sizes = {name: {way: sent(directory, way) for way in ("down", "up")} for name, directory in runs.items()}
    whole = sizes["fedit"]
    assert sizes["ffa-lora"]["down"] < 0.8 * whole["down"]
    assert sizes["ffa-lora"]["up"] < 0.8 * whole["up"]
    assert sizes["fedsa-lora"]["up"] < 0.6 * whole["up"]
    assert sizes["rolora"]["up"] < 0.8 * whole["up"] < whole["up"]
    assert sizes["rolora"]["down"] == pytest.approx(whole["down"], rel=0.02)
    first, *_, last = figures(runs["fed-sb"])
    assert last["bytes"]["train_up"] / len(last["cohort"]) == pytest.approx(whole["up"], rel=0.1)
    assert first["bytes"]["train_up"] > last["bytes"]["train_up"]
    assert sizes["fed-sb"]["down"] > whole["down"]


@pytest.mark.parametrize("method", [name for name, info in METHODS.items() if info.any_rank])
def test_clients_of_different_ranks_take_part_together(method: str, tmp_path: Path) -> None:
    directory = made(tmp_path, method=method, **{"lora.ranks": "1,4"})
    assert not any(one["failures"] for one in figures(directory))
    assert figures(directory)[-1]["evaluation"]
    assert ("probe_up" in figures(directory)[-1]["bytes"]) == (method == "hyperlora")
    low = (directory / "adapters" / "clean-0" / "adapter_config.json").read_text()
    high = (directory / "adapters" / "clean-1" / "adapter_config.json").read_text()
    ranks = [json.loads(one)["r"] for one in (low, high)]
    assert ranks == [1, 4] or method == "flora"


@pytest.mark.parametrize("method", ["hyperlora", "hetlora"])
@pytest.mark.usefixtures("metrics_alone")
def test_clients_of_different_ranks_go_on_in_a_run_that_is_resumed(method: str, tmp_path: Path) -> None:
    values = {"lora.ranks": "1,4", "run.checkpoint-every": 1, "federation.evaluate-every": 1}
    made(tmp_path, method=method, **{**values, "federation.rounds": 1})
    directory = made(tmp_path, method=method, **{**values, "run.resume": True})
    rounds = figures(directory)
    assert [one["server_round"] for one in rounds] == [1, 2, 3]
    assert not any(one["failures"] for one in rounds)


@pytest.mark.parametrize("importance", ["spectrum", "sensitivity"])
@pytest.mark.usefixtures("metrics_alone")
def test_clients_with_a_budget_train_within_it(importance: str, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    whole = sent(run_of("flexlora"), "up")
    values = {"lora.budget": "9k", "lora.importance": importance, "method": "flexlora"}
    directory = made(tmp_path / importance, **values)
    assert not any(one["failures"] for one in figures(directory))
    assert sent(directory, "up") < 0.6 * whole
    assert sent(directory, "down") < 0.6 * whole
