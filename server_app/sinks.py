"""Live metrics: every round's figures, handed to TensorBoard, Weights & Biases or MLflow as they come."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hyperlora.config.schema import ConfigError, RunConfig
from strategies.engine.records import RoundRecord

log = logging.getLogger(__name__)
AUTO = "auto"


@dataclass(frozen=True)
class Sink:
    """Where figures go.

    Attributes:
        write: takes a round and its figures by name.
        close: writes what is still held; nothing comes after it.
    """

    write: Callable[[int, Mapping[str, float]], object]
    close: Callable[[], object]


def open_tensorboard(config: RunConfig, directory: Path) -> Sink:
    """Return event files in ``<run directory>/tensorboard``."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory / "tensorboard"))

    def write(server_round: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, server_round)
        writer.flush()

    return Sink(write, writer.close)


def open_wandb(config: RunConfig, directory: Path) -> Sink:
    """Return a run of the project ``hyperlora``, named as the run directory; WANDB_MODE and WANDB_PROJECT hold."""
    import wandb

    run = wandb.init(
        project=None if os.environ.get("WANDB_PROJECT") else "hyperlora",
        id=directory.name,
        name=directory.name,
        resume="allow",
        config=config.public(),
        dir=str(directory),
    )
    return Sink(lambda server_round, figures: run.log(dict(figures), step=server_round), run.finish)


def open_mlflow(config: RunConfig, directory: Path) -> Sink:
    """Return a run named as the run directory, at MLFLOW_TRACKING_URI."""
    import mlflow

    mlflow.start_run(run_name=directory.name)
    mlflow.log_params(config.public())
    return Sink(lambda server_round, figures: mlflow.log_metrics(dict(figures), step=server_round), mlflow.end_run)


BUILDERS: Mapping[str, Callable[[RunConfig, Path], Sink]] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "mlflow": open_mlflow,
}
"""Name of the package, as in ``run.sinks`` -> what opens the sink."""


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

    def _try(self, name: str, action: Callable[[Sink], object]) -> None:
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
