"""Composition root of the server: parse the configuration, build the parts, run the rounds, save the results."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from hyperlora.config.schema import ConfigError, RunConfig, Scalar
from hyperlora.config.settings import PrivacyConfig
from hyperlora.progress import told_to
from hyperlora.reporting.figures import scores_by_client
from hyperlora.reporting.model_card import accuracy_of_anchor, accuracy_sentence, write_card
from hyperlora.reporting.panels import save_accuracy
from hyperlora.reporting.run_files import RunFiles
from hyperlora.storage.allow_list import AllowListFile
from hyperlora.storage.files import private_files
from hyperlora.storage.run_names import CLIENTS, CONSOLE, ENVIRONMENT, EVALUATION, LEFT_OUT, METRICS
from hyperlora.task import backbone_file, build_model, cohort_size, data_set_info, expected_clients
from models.adapters.adapted_model import AdaptedModel
from models.adapters.rank_budget import least_bytes
from models.personalization.prior import add_prior
from server_app.audit import AuditedGrid, RunAudit, digest_of_settings
from server_app.console import RunConsole
from server_app.progress import Pace, ProgressGrid
from server_app.run_directory import (
    RunDirectory,
    describe_environment,
    open_checkpoints,
)
from server_app.sinks import Sinks, open_sinks
from strategies.engine.checkpoint import CheckpointStore
from strategies.engine.records import RoundRecord
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.federation.client_list import ClientList
from strategies.federation.registrar import Registrar
from strategies.federation.shipping import Shipment
from strategies.methods.base.server import Reports
from strategies.methods.registry import build_method, required_rank
from strategies.sums.noised import NoisedSumsStrategy
from strategies.sums.strategy import SumsStrategy

log = logging.getLogger(__name__)
SERVER_THREADS = 1


def run(grid: Grid, values: Mapping[str, Scalar], *, echo: bool = False) -> Path:
    """Make one run and return its directory; ``echo`` prints what the run's console says.

    Raises:
        ValueError, FederationError: what was asked for is wrong or cannot be done; one sentence, which is also
            written to ``error.txt`` in the run directory, unless another run has the directory.
    """
    directory = RunDirectory.open(
        str(values.get("run.output-dir", "")),
        resume=bool(values.get("run.resume", False)),
        rounds=int(values.get("federation.rounds", RunConfig().federation.rounds)),
    )
    with directory.held(), directory.recording_errors():
        config = RunConfig.parse({**values, "run.output-dir": str(directory.path)})
        torch.set_num_threads(SERVER_THREADS)
        console = RunConsole(directory.path / CONSOLE, pace=_pace(config), echo=echo)
        console.opening(config, directory.path)
        with told_to(console.progress):
            model = build_model(config.data, config.model, config.lora)
        directory.check_config(config)
        strategy = build_strategy(config, model)
        strategy.on_cohort = directory.keep_cohort
        console.switched_off(strategy.method.switched_off() if isinstance(strategy.method, Reports) else ())
        with private_files():
            with closing(open_sinks(config, directory.path)) as sinks:
                audit = RunAudit(directory.path)
                audit.note("begun", method=config.method, resume=config.run.resume, settings=digest_of_settings(config))
                made = _Run(config, directory, strategy, open_checkpoints(directory, config), console, sinks, audit)
                start_round = made.begin(model.backbone.fingerprint)
                made.make_rounds(ProgressGrid(AuditedGrid(grid, audit), console.progress), start_round)
            made.save_results(model)
        console.closing(strategy.record, strategy.scores, directory.path)
    return directory.path


def _pace(config: RunConfig) -> Pace:
    """Return the pace of a run, which supposes until it has seen one that an evaluation is a round of all clients."""
    federation = config.federation
    clients = federation.min_clients or max(1, expected_clients(config.data))
    return Pace(federation.rounds, federation.evaluate_every, clients / federation.clients_per_round)


def _kind_of(privacy: PrivacyConfig) -> type[LoraStrategy]:
    """Return which round loop a run has."""
    if privacy.noised_sums:
        return NoisedSumsStrategy
    return SumsStrategy if privacy.mode == "sums" else LoraStrategy


def build_strategy(config: RunConfig, model: AdaptedModel) -> LoraStrategy:
    """Put the method that the configuration names into the round loop."""
    federation, num_classes = config.federation, len(data_set_info(config.data).class_names)
    allowed = AllowListFile(Path(federation.allowed_clients)) if federation.allowed_clients else None
    shipment = Shipment(model.backbone.fingerprint, partial(backbone_file, config.data, config.model))
    initial = model.fresh_adapter(config.seed)
    return _kind_of(config.privacy)(
        build_method(config),
        initial=initial,
        registrar=Registrar.of(
            model,
            num_classes,
            allowed=allowed,
            shipment=shipment if config.model.ship else None,
            required_rank=required_rank(config, initial.rank),
            most_clients=federation.clients_per_node,
            least_bytes=least_bytes(initial, config.wire.dtype),
        ),
        settings=replace(
            RoundSettings.of(config, min_clients=federation.min_clients or expected_clients(config.data)),
            clients_per_round=cohort_size(config.data, federation.clients_per_round),
        ),
    )


@dataclass(frozen=True)
class _Run:
    """A run between its rounds: what is written after each of them, restored before the first, saved after the last."""

    config: RunConfig
    directory: RunDirectory
    strategy: LoraStrategy
    checkpoints: CheckpointStore
    console: RunConsole
    sinks: Sinks
    audit: RunAudit

    def begin(self, fingerprint: str) -> int:
        """Restore what is to be gone on with, keep the settings, and return the first round to make.

        Raises:
            ConfigError, StateError: the run cannot go on; its directory is then as it was.
        """
        start_round = self._restored_round() + 1 if self.config.run.resume else 1
        self.directory.keep_config(self.config)
        self.directory.write_json(ENVIRONMENT, describe_environment(self.config.seed, fingerprint))
        return start_round

    def make_rounds(self, grid: Grid, start_round: int) -> None:
        """Run all rounds, or those after the last checkpoint."""
        rounds = self.config.federation.rounds
        if start_round > rounds:
            if self.directory.has_results:
                raise ConfigError(
                    f"{start_round - 1} rounds of the run in '{self.directory.path}' are made and federation.rounds "
                    f"is {rounds}: raise it"
                )
            return  # it was stopped while its results were written
        self.directory.forget_results()
        timeout = self.config.federation.round_timeout
        try:
            self.strategy.start(
                grid, num_rounds=rounds, timeout=timeout, start_round=start_round, on_round=self._keep_round
            )
        finally:
            self._keep_left_out()

    def save_results(self, model: AdaptedModel) -> None:
        """Write the adapters (PEFT), each client's last evaluation, and the figure of accuracy over rounds."""
        self._keep_clients()
        scores = [asdict(score) for score in self.strategy.scores]
        if self.config.lora.has_peft_form:
            self._save_adapters(model, scores)
        save_accuracy(self.directory.path / METRICS, self.directory.path / "accuracy")
        self.directory.write_json(EVALUATION, scores)

    def _save_adapters(self, model: AdaptedModel, scores: list[dict[str, Any]]) -> None:
        adapters = self.directory.path / "adapters"
        for name, (card, start) in self.strategy.final_adapters().items():
            personal = add_prior(start, card.signature.class_frequencies, self.config.prior_strength)
            model.save(personal, adapters / name)
        anchor = self.strategy.method.anchor(self.strategy.state)
        if anchor is not None:
            model.save(anchor, adapters / "anchor")
        self._describe_adapters(adapters, scores)

    def _describe_adapters(self, adapters: Path, scores: list[dict[str, Any]]) -> None:
        """Write a model card into the directory of every adapter, in place of PEFT's empty one."""
        run, by_client = RunFiles.open(self.directory.path), scores_by_client(scores)
        for directory in sorted(path for path in adapters.iterdir() if path.is_dir()):
            if directory.name == "anchor":
                figures, title = accuracy_of_anchor(run), "anchor"
            else:
                figures = [accuracy_sentence(by_client.get(directory.name), self.config)]
                title = f"adapter of client {directory.name}"
            write_card(run, directory, title, figures=figures)

    def _keep_round(self, record: RoundRecord) -> None:
        """Write one line of metrics and of the console, and a checkpoint where one is due."""
        record.seconds["elapsed"] = self.console.elapsed
        self.directory.append_json(METRICS, record.as_json())
        done, every = record.server_round, self.config.run.checkpoint_every
        if every and (done % every == 0 or done == self.config.federation.rounds):
            self.checkpoints.save(self.strategy.checkpoint(), self.strategy.method.state_classes)
            self._keep_clients()
        self._keep_left_out()
        self.audit.note_round(record, self.strategy.roster.left_out)
        self.console.round(record)
        self.sinks.round(record)

    def _restored_round(self) -> int:
        """Restore the last checkpoint and return its round; 0 where the run was stopped before its first.

        Raises:
            ConfigError: there is no checkpoint, although there should be one by now.
            StateError: there are some, and none can be used.
        """
        found = self.checkpoints.latest(self.strategy.method.state_classes)
        if found is None and self.directory.recorded_rounds() > self.config.run.checkpoint_every:
            raise ConfigError(f"there is no checkpoint in '{self.checkpoints.directory}' to go on from")
        if found is not None:
            self.strategy.resume(found)
        self.strategy.history.recall(self.directory.cohorts())
        self.directory.forget_rounds_after(found.server_round if found else 0)
        self.console.going_on(found.server_round if found else 0, self.directory.seconds_so_far())
        if found is None:
            return 0
        method, cards = self.strategy.method, self.strategy.known_cards.values()
        if any(method.plan(self.strategy.state, card).personal for card in cards):
            log.warning("adapters that clients kept locally are lost: the run differs from one that was never stopped")
        return found.server_round

    def _keep_clients(self) -> None:
        """Write the clients as the server knows them: what a report shows and what personalising starts from."""
        names = data_set_info(self.config.data).class_names
        self.directory.write_json(CLIENTS, ClientList(names, self.strategy.known_cards).as_json())

    def _keep_left_out(self) -> None:
        """Write which nodes and clients take no part and why; no file where there was never one."""
        if self.strategy.roster.left_out or (self.directory.path / LEFT_OUT).exists():
            self.directory.write_json(LEFT_OUT, self.strategy.roster.left_out)
