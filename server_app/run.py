"""Composition root of the server: parse the configuration, build the parts, run the rounds, save the results."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from flwr.serverapp import Grid

from hyperlora.config.schema import ConfigError, RunConfig, Scalar
from hyperlora.reporting.panels import save_accuracy
from hyperlora.task import backbone_file, build_model, cohort_size, data_set_info, expected_clients, fresh_adapter
from models.adapters.adapted_model import AdaptedModel
from models.personalization.prior import add_prior
from server_app.console import RunConsole
from server_app.environment import describe_environment
from server_app.run_directory import EVALUATION, METRICS, RunDirectory
from server_app.sinks import Sinks, open_sinks
from strategies.engine.assembly import build_roster, round_settings
from strategies.engine.checkpoint import CheckpointStore
from strategies.engine.records import RoundRecord
from strategies.engine.strategy import LoraStrategy
from strategies.federation.allow_list import AllowListFile
from strategies.federation.client_list import FILE_NAME as CLIENTS_FILE
from strategies.federation.client_list import ClientList
from strategies.federation.shipping import Shipment
from strategies.methods.registry import build_method

log = logging.getLogger(__name__)
SERVER_THREADS = 1
LEFT_OUT_FILE = "left_out.json"


def run(grid: Grid, values: Mapping[str, Scalar], *, echo: bool = False) -> Path:
    """Make one run and return its directory; ``echo`` prints what the run's console says.

    Raises:
        ValueError, FederationError: what was asked for is wrong or cannot be done; one sentence, which is also
            written to ``error.txt`` in the run directory.
    """
    directory = RunDirectory.open(str(values.get("run.output-dir", "")), resume=bool(values.get("run.resume", False)))
    with directory.recording_errors(), directory.held():
        config = RunConfig.parse({**values, "run.output-dir": str(directory.path)})
        torch.set_num_threads(SERVER_THREADS)
        console = RunConsole(directory.path / "console.log", rounds=config.federation.rounds, echo=echo)
        console.opening(config, directory.path)
        model = build_model(config.data, config.model, config.lora)
        directory.keep_config(config)
        directory.write_json("environment.json", describe_environment(config.seed, model.backbone.fingerprint))
        strategy = build_strategy(config, model)
        console.switched_off(strategy.method.switched_off())
        sinks = open_sinks(config, directory.path)
        try:
            run_rounds(strategy, grid, config, directory, console, sinks)
        finally:
            sinks.close()
        save_results(strategy, model, config, directory)
        console.closing(strategy.record, directory.path)
    return directory.path


def build_strategy(config: RunConfig, model: AdaptedModel) -> LoraStrategy:
    """Put the method that the configuration names into the round loop."""
    own, num_classes = config.federation, len(data_set_info(config.data).class_names)
    allowed = AllowListFile(Path(own.allowed_clients)) if own.allowed_clients else None
    shipment = Shipment(model.backbone.fingerprint, partial(backbone_file, config.data, config.model))
    return LoraStrategy(
        build_method(config),
        initial=fresh_adapter(config, model),
        roster=build_roster(model, num_classes, allowed, shipment if config.model.ship else None),
        settings=replace(
            round_settings(config, min_clients=own.min_clients or expected_clients(config.data)),
            clients_per_round=cohort_size(config.data, own.clients_per_round),
        ),
    )


def run_rounds(
    strategy: LoraStrategy,
    grid: Grid,
    config: RunConfig,
    directory: RunDirectory,
    console: RunConsole,
    sinks: Sinks,
) -> None:
    """Run all rounds, or those after the last checkpoint; every round is one line of metrics and of the console."""
    rounds, own = config.federation.rounds, config.run
    checkpoints = CheckpointStore(directory.path / "checkpoints", keep=own.checkpoints_kept)

    def on_round(record: RoundRecord) -> None:
        directory.append_json(METRICS, record.as_json())
        done = record.server_round
        if own.checkpoint_every and (done % own.checkpoint_every == 0 or done == rounds):
            checkpoints.save(strategy.checkpoint(), strategy.method.state_classes)
            keep_clients(strategy, config, directory)
        keep_left_out(strategy, directory)
        console.round(record)
        sinks.round(record)

    start_round = restore(strategy, checkpoints, directory, own.checkpoint_every) + 1 if own.resume else 1
    if start_round > rounds and (directory.has_results or not strategy.scores):
        raise ConfigError(f"all {rounds} rounds of the run in '{directory.path}' are made; raise federation.rounds")
    if start_round > rounds:
        return  # it was stopped while its results were written
    directory.forget_results()
    try:
        strategy.start(
            grid,
            num_rounds=rounds,
            timeout=config.federation.round_timeout,
            start_round=start_round,
            on_round=on_round,
        )
    finally:
        keep_left_out(strategy, directory)


def restore(strategy: LoraStrategy, checkpoints: CheckpointStore, directory: RunDirectory, every: int) -> int:
    """Put the last checkpoint into ``strategy`` and return its round; 0 where the run was stopped before its first.

    Raises:
        ConfigError: there is no checkpoint, although there should be one by now (they are made ``every`` so often).
        StateError: there are some, and none can be used.
    """
    found = checkpoints.latest(strategy.method.state_classes)
    if found is None and directory.recorded_rounds() > every:
        raise ConfigError(f"there is no checkpoint in '{checkpoints.directory}' to go on from")
    last_round = 0 if found is None else found.server_round
    directory.forget_rounds_after(last_round)
    if found is None:
        log.warning("the run was stopped before its first checkpoint: it begins again at round 1")
    else:
        strategy.resume(found)
        name_what_clients_lost(strategy)
    return last_round


def name_what_clients_lost(strategy: LoraStrategy) -> None:
    """Warn where the method has clients keep an adapter themselves: it is gone with the Flower run that was stopped."""
    plans = (strategy.method.plan(strategy.state, card).personal for card in strategy.roster.cards.values())
    if any(personal != "none" for personal in plans):
        log.warning("clients kept adapters of their own, which are lost: the run goes on, not as if never stopped")


def keep_clients(strategy: LoraStrategy, config: RunConfig, directory: RunDirectory) -> None:
    """Write the clients as the server knows them: what a report shows and what personalising starts from."""
    names = data_set_info(config.data).class_names
    directory.write_json(CLIENTS_FILE, ClientList(names, strategy.roster.cards).as_json())


def keep_left_out(strategy: LoraStrategy, directory: RunDirectory) -> None:
    """Write which nodes and clients take no part and why; no file where there was never one."""
    if strategy.roster.left_out or (directory.path / LEFT_OUT_FILE).exists():
        directory.write_json(LEFT_OUT_FILE, strategy.roster.left_out)


def save_results(strategy: LoraStrategy, model: AdaptedModel, config: RunConfig, directory: RunDirectory) -> None:
    """Write the adapters (PEFT), each client's last evaluation, and the figure of accuracy over rounds."""
    keep_clients(strategy, config, directory)
    gamma = config.prior_strength
    for name, (card, start) in strategy.final_adapters().items():
        personal = add_prior(start, card.signature.class_frequencies, gamma)
        model.save(personal, directory.path / "adapters" / name)
    anchor = strategy.method.anchor(strategy.state)
    if anchor is not None:
        model.save(anchor, directory.path / "adapters" / "anchor")
    save_accuracy(directory.path / METRICS, directory.path / "accuracy")
    directory.write_json(EVALUATION, [asdict(score) for score in strategy.scores])
