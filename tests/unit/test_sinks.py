"""Live metrics: what is handed on, to whom, and that no tracker can end a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hyperlora.config.schema import ConfigError, RunConfig
from server_app import sinks as module
from server_app.sinks import Sink, Sinks, figures_of, open_sinks, wanted
from strategies.engine.records import RoundRecord

RECORD = RoundRecord(
    3,
    training={"clients": 2, "end_loss": {"mean": 0.5, "std": 0.1, "worst_tenth": 0.4}},
    evaluation={"unseen": {"zero_step": {"mean": 0.75}, "k_step": {"mean": 0.8}}},
    bytes={"train_up": 10},
    failures={"train a": "late"},
)
FIGURES = {
    "training/end_loss": 0.5,
    "test/unseen/zero_step": 0.75,
    "test/unseen/k_step": 0.8,
    "bytes/train_up": 10.0,
    "failures": 1.0,
}


class Recorder:
    def __init__(self) -> None:
        self.written: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False

    def write(self, server_round: int, figures: Mapping[str, float]) -> None:
        self.written.append((server_round, figures))

    def close(self) -> None:
        self.closed = True


class Broken(Recorder):
    def write(self, server_round: int, figures: Mapping[str, float]) -> None:
        raise OSError("no network")


def test_the_figures_of_a_round_have_names_with_slashes() -> None:
    assert dict(figures_of(RECORD)) == FIGURES


def test_a_sink_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    good, broken = Recorder(), Broken()
    sinks = Sinks({name: Sink(one.write, one.close) for name, one in (("broken", broken), ("good", good))})
    sinks.round(RECORD)
    sinks.round(RECORD)
    sinks.close()
    assert [server_round for server_round, _ in good.written] == [3, 3]
    assert good.closed
    assert not broken.closed
    assert caplog.messages == ["live metrics to broken end here: no network"]


def test_auto_is_tensorboard_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    assert wanted("auto") == ["tensorboard"]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert wanted("auto") == []


def test_a_sink_that_is_named_and_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hyperlora\[wandb\]'"):
        wanted("wandb")


def test_an_unknown_sink_is_refused_by_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"run\.sinks"):
        RunConfig.parse({"run.sinks": "tensorbord"})


def test_tensorboard_gets_every_figure(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sinks = open_sinks(RunConfig.parse({"run.sinks": "tensorboard"}), tmp_path)
    sinks.round(RECORD)
    sinks.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]} == pytest.approx(FIGURES)
    assert events.Scalars("failures")[0].step == 3


def test_wandb_and_mlflow_get_figures_and_a_configuration_without_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, Any]] = []

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            calls.append(("wandb", (figures, step)))

        def finish(self) -> None:
            calls.append(("wandb", "finish"))

    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init = lambda **given: calls.append(("wandb", given["config"])) or Run()  # type: ignore[attr-defined]
    mlflow.start_run = lambda run_name: None  # type: ignore[attr-defined]
    mlflow.log_params = lambda values: calls.append(("mlflow", values))  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda values, step: calls.append(("mlflow", (values, step)))  # type: ignore[attr-defined]
    mlflow.end_run = lambda: calls.append(("mlflow", "finish"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    config = RunConfig.parse({"run.sinks": "wandb,mlflow", "data.path": "/secret"})
    sinks = open_sinks(config, tmp_path)
    sinks.round(RECORD)
    sinks.close()
    for name in ("wandb", "mlflow"):
        own = [value for who, value in calls if who == name]
        assert own == [config.public(), (FIGURES, 3), "finish"]
    assert "/secret" not in str(calls)
