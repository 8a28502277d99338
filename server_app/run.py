"""Composition root of the server: parse the configuration, build the parts, run the rounds, save the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from flwr.serverapp import Grid

from data.catalog import data_set_info
from models.adapted_model import AdaptedModel
from models.prior import add_prior
from protocol.build import build_model, derive_seed
from protocol.config import ConfigError, RunConfig, Scalar
from server_app.console import RunConsole
from server_app.environment import describe_environment
from server_app.figure import draw_accuracy
from server_app.run_directory import RunDirectory
from strategies.catalog import build_method
from strategies.checkpoint import CheckpointStore
from strategies.lora_strategy import LoraStrategy, RoundSettings
from strategies.records import RoundRecord
from strategies.roster import Roster

SERVER_THREADS = 1


def run(grid: Grid, values: Mapping[str, Scalar], *, echo: bool = False) -> Path:
    """Make one run and return its directory; ``echo`` prints what the run's console says.

    Raises:
        ValueError, FederationError: what was asked for is wrong or cannot be done; one sentence, which is also
            written to ``error.txt`` in the run directory.
    """
    directory = RunDirectory.open(str(values.get("run.output-dir", "")), resume=bool(values.get("run.resume", False)))
    with directory.recording_errors():
        config = RunConfig.parse({**values, "run.output-dir": str(directory.path)})
        torch.set_num_threads(SERVER_THREADS)
        console = RunConsole(directory.path / "console.log", rounds=config.federation.rounds, echo=echo)
        console.opening(config, directory.path)
        model = build_model(config.data, config.model, config.lora)
        directory.keep_config(config)
        directory.write_json("environment.json", describe_environment(config.seed, model.backbone.fingerprint))
        strategy = build_strategy(config, model)
        console.switched_off(strategy.method.switched_off())
        run_rounds(strategy, grid, config, directory, console)
        save_results(strategy, model, config, directory)
        console.closing(strategy.record, directory.path)
    return directory.path


def build_strategy(config: RunConfig, model: AdaptedModel) -> LoraStrategy:
    """Put the method that the configuration names into the round loop."""
    info, own = data_set_info(config.data.name), config.federation
    num_classes = len(info.class_names)
    roster = Roster(
        fingerprint=model.backbone.fingerprint,
        signature_size=2 * model.backbone.embed_dim + num_classes + 1,
        num_classes=num_classes,
    )
    settings = RoundSettings(
        clients_per_round=own.clients_per_round,
        local_steps=config.train.local_steps,
        evaluate_steps=config.evaluation_steps,
        evaluate_every=own.evaluate_every,
        seed=config.seed,
        min_clients=own.min_clients or config.data.clients_per_domain * len(info.domains),
        join_timeout=own.join_timeout,
        round_timeout=own.round_timeout,
        wire=config.wire.dtype,
    )
    initial = model.initialise(derive_seed(config.seed, "lora"))
    return LoraStrategy(build_method(config), initial=initial, roster=roster, settings=settings)


def run_rounds(
    strategy: LoraStrategy, grid: Grid, config: RunConfig, directory: RunDirectory, console: RunConsole
) -> None:
    """Run all rounds, or those after the last checkpoint; every round is one line of metrics and of the console."""
    rounds, own = config.federation.rounds, config.run
    checkpoints = CheckpointStore(directory.path / "checkpoints", keep=own.checkpoints_kept)

    def on_round(record: RoundRecord) -> None:
        directory.append_json("metrics.jsonl", record.as_json())
        done = record.server_round
        if own.checkpoint_every and (done % own.checkpoint_every == 0 or done == rounds):
            checkpoints.save(done, strategy.state, strategy.method.state_classes)
        console.round(record)

    start_round = restore(strategy, checkpoints, directory) + 1 if own.resume else 1
    if start_round > rounds:
        raise ConfigError(f"all {rounds} rounds of the run in '{directory.path}' are made; raise federation.rounds")
    strategy.start(
        grid,
        num_rounds=rounds,
        timeout=config.federation.round_timeout,
        start_round=start_round,
        on_round=on_round,
    )


def restore(strategy: LoraStrategy, checkpoints: CheckpointStore, directory: RunDirectory) -> int:
    """Put the last checkpoint's state into ``strategy`` and return its round.

    Raises:
        ConfigError: there is no checkpoint.
        StateError: there are some, and none can be used.
    """
    found = checkpoints.latest(strategy.method.state_classes)
    if found is None:
        raise ConfigError(f"there is no checkpoint in '{checkpoints.directory}' to go on from")
    last_round, strategy.state = found
    directory.forget_rounds_after(last_round)
    return last_round


def save_results(strategy: LoraStrategy, model: AdaptedModel, config: RunConfig, directory: RunDirectory) -> None:
    """Write the adapters (PEFT), each client's last evaluation, and the figure of accuracy over rounds."""
    gamma = config.prior_strength
    for name, (card, start) in strategy.final_adapters().items():
        personal = add_prior(start, card.signature.class_frequencies, gamma)
        model.save(personal, directory.path / "adapters" / name)
    anchor = strategy.method.anchor(strategy.state)
    if anchor is not None:
        model.save(anchor, directory.path / "adapters" / "anchor")
    directory.write_json("evaluation.json", [asdict(score) for score in strategy.scores])
    draw_accuracy(directory.path / "metrics.jsonl", directory.path / "accuracy")
