"""The reference line: all training data in one place, as many steps as all clients of a federation make together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.adapting import RATE, mean_losses, seen_clients
from benchmarks.result import job_result, write_json
from benchmarks.suite import Job
from benchmarks.trials import AdaptingGrid
from client_app.runtime import ClientRuntime, open_runtime
from client_app.tasks import NothingKept, evaluate_adapter
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter
from models.adapters.optimizers import OptimizerSpec
from models.adapters.training import descend
from server_app.run_directory import describe_environment
from strategies.engine.records import ClientScore, RoundRecord, client_score, evaluation_figures


def run_centralised(job: Job, target: Path) -> None:
    """Train on the pooled samples of all seen clients, score every client, and write the same json as a federation."""
    began = time.perf_counter()
    runtime = open_runtime(job.config)
    adapter = trained(runtime)
    scores = [score(runtime, name, adapter) for name in runtime.federation.client_ids]
    record = RoundRecord(job.config.federation.rounds)
    record.evaluation = evaluation_figures(scores)
    environment = describe_environment(job.config.seed, runtime.model.backbone.fingerprint)
    clients: list[Mapping[str, Any]] = [asdict(one) for one in scores]
    rounds, seconds = [record.as_json()], time.perf_counter() - began
    tried = mean_losses(adapting_losses(runtime, adapter, job.adapting)) if job.adapting else ()
    result = job_result(job, environment=environment, clients=clients, rounds=rounds, seconds=seconds, adapting=tried)
    write_json(target, result)


def adapting_losses(
    runtime: ClientRuntime, adapter: Adapter, grid: AdaptingGrid
) -> dict[tuple[float, int], list[float]]:
    """Return by rate and steps of use the validation losses of the seen clients that try them."""
    losses: dict[tuple[float, int], list[float]] = {}
    trying = sorted(grid.drawn(seen_clients(runtime), runtime.config.seed))
    for rate, name in product(grid.rates, trying):
        other = replace(runtime, config=runtime.config.with_values({RATE: rate}))
        last, start = runtime.config.federation.rounds, Start(adapter)
        request = EvaluateRequest(name, last, grid.scored, start, validation_only=True)
        told = evaluate_adapter(other, request, NothingKept()).validation_loss
        for steps, loss in zip(grid.scored, told, strict=True):
            losses.setdefault((rate, steps), []).append(loss)
    return losses


def trained(runtime: ClientRuntime) -> Adapter:
    """Return the adapter after rounds x clients x K steps; each sample carries its own client's prior in its logits."""
    config, model = runtime.config, runtime.model
    model.load(model.fresh_adapter(config.seed))
    tokens, labels, bias = pooled(runtime)
    train = config.train
    spec = OptimizerSpec(train.optimizer, train.learning_rate, train.weight_decay, train.lora_plus_ratio)
    optimizers = spec.build(model)
    chance = torch.Generator().manual_seed(derive_seed(config.seed, "centralised"))
    for _ in range(config.federation.rounds * config.federation.clients_per_round * train.local_steps):
        batch = torch.randint(len(labels), (train.batch_size,), generator=chance)
        descend(partial(_loss, model, tokens[batch], labels[batch], bias[batch]), optimizers)
    return model.extract()


def _loss(model: AdaptedModel, tokens: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    logits = model.logits(tokens.to(model.device)) + bias.to(model.device)
    return F.cross_entropy(logits, labels.to(model.device))


def pooled(runtime: ClientRuntime) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (n, t, d), labels (n,) and log priors (n, classes) of all seen clients' training samples."""
    gamma, parts = runtime.config.prior_strength, []
    for name in runtime.federation.client_ids:
        if runtime.client(name).trains:
            samples = runtime.tokens(name, "train")
            prior = gamma * runtime.frequencies(name).log()
            parts.append((samples.tokens, samples.labels, prior.expand(len(samples), -1)))
    tokens, labels, bias = (torch.cat(column) for column in zip(*parts, strict=True))
    return tokens, labels, bias


def score(runtime: ClientRuntime, client_id: str, adapter: Adapter) -> ClientScore:
    """Return what the adapter is worth to one client after each number of local steps."""
    config, client = runtime.config, runtime.client(client_id)
    request = EvaluateRequest(client_id, config.federation.rounds, config.evaluation_steps, Start(adapter))
    reply = evaluate_adapter(runtime, request, NothingKept())
    card = ClientCard(client_id, client.domain, client.trains, len(client.train), runtime.signature(client_id))
    return client_score(card, request, reply)
