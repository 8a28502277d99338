"""Live metrics: every round's figures, handed to TensorBoard, Weights & Biases or MLflow as they come."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from hyperlora.config.schema import ConfigError, RunConfig
from strategies.engine.records import RoundRecord

log = logging.getLogger(__name__)
AUTO = "auto"


class Sink(Protocol):
    """Where figures go. A new one is a class with these two and a line in ``BUILDERS``."""

    def write(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a round, by name."""

    def close(self) -> None:
        """Write what is still held; nothing comes after it."""


class TensorBoardSink:
    """Event files in ``<run directory>/tensorboard``."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def write(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Add one scalar for each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


class WandbSink:
    """A run of the project ``hyperlora``, named as the run directory; WANDB_MODE and WANDB_PROJECT are respected."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        import wandb

        name = directory.name
        self._run = wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else "hyperlora",
            id=name,
            name=name,
            resume="allow",
            config=config.public(),
            dir=str(directory),
        )

    def write(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Log all figures at the step of the round."""
        self._run.log(dict(figures), step=server_round)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MlflowSink:
    """A run named as the run directory, at MLFLOW_TRACKING_URI."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        import mlflow

        self._client: Any = mlflow
        mlflow.start_run(run_name=directory.name)
        mlflow.log_params(config.public())

    def write(self, server_round: int, figures: Mapping[str, float]) -> None:
        """Log all figures at the step of the round."""
        self._client.log_metrics(dict(figures), step=server_round)

    def close(self) -> None:
        """End the run."""
        self._client.end_run()


BUILDERS: Mapping[str, Callable[[RunConfig, Path], Sink]] = {
    "tensorboard": TensorBoardSink,
    "wandb": WandbSink,
    "mlflow": MlflowSink,
}


class Sinks:
    """All sinks of a run. One that fails is named in a warning and left out; the run goes on."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def round(self, record: RoundRecord) -> None:
        """Hand on the figures of a round."""
        figures = dict(figures_of(record))
        for name in list(self._sinks):
            self._try(name, lambda sink: sink.write(record.server_round, figures))

    def close(self) -> None:
        """Close every sink."""
        for name in list(self._sinks):
            self._try(name, lambda sink: sink.close())

    def _try(self, name: str, action: Any) -> None:
        try:
            action(self._sinks[name])
        except Exception as error:  # whatever a tracker raises, it must not end a run
            log.warning("live metrics to %s end here: %s", name, error)
            del self._sinks[name]


def open_sinks(config: RunConfig, directory: Path) -> Sinks:
    """Return the sinks that ``run.sinks`` names.

    Raises:
        ConfigError: the package of one that is named is not installed.
    """
    return Sinks({name: BUILDERS[name](config, directory) for name in wanted(config.run.sinks)})


def wanted(sinks: str) -> Sequence[str]:
    """Return the names of the sinks to open."""
    if sinks == AUTO:
        return ["tensorboard"] if find_spec("tensorboard") else []
    names = [name for name in sinks.split(",") if name]
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"run.sinks names {name}, which is not installed: pip install 'hyperlora[{name}]'")
    return names


def figures_of(record: RoundRecord) -> Iterator[tuple[str, float]]:
    """Yield the figures of a round by a name with slashes, means over clients where there are several."""
    for name, value in record.training.items():
        if isinstance(value, dict):
            yield f"training/{name}", value["mean"]
    for group, figures in record.evaluation.items():
        for column in ("zero_step", "k_step"):
            yield f"test/{group}/{column}", figures[column]["mean"]
    for part in ("bytes", "seconds", "method", "privacy"):
        for name, value in getattr(record, part).items():
            yield f"{part}/{name}", float(value)
    yield "failures", float(len(record.failures))
