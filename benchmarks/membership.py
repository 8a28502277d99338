"""``python -m benchmarks.membership``: what signatures and adapters tell of who is in a client's training data.

An attacker who knows the backbone and every other client's signature, and holds some samples, half of them the client's
training samples and half its test samples, says which are which. From a signature by the inner product of a sample's
description with it (Dwork et al. 2015, "Robust traceability from trace amounts"); from an adapter by how much lower a
sample's loss is with it than with the anchor (Watson et al. 2022, "On the importance of difficulty calibration").
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from benchmarks.attack_tables import membership_table
from benchmarks.local_grid import LocalGrid
from benchmarks.result import current_commit, write_json
from benchmarks.run_job import NODES
from client_app.runtime import ClientRuntime, open_runtime
from client_app.tasks import NothingKept, train_start
from client_app.token_cache import PREFIX_BATCH
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.plan import Start
from hyperlora.messages.train import TrainRequest
from hyperlora.task import build_model
from models.adapters.adapter import Adapter
from models.personalization.prior import add_prior
from models.personalization.signature import Signature
from server_app.run import build_strategy
from strategies.engine.strategy import LoraStrategy

HERE = Path(__file__).parent
RESULT = HERE / "results" / "membership.json"
FALSE_ALARMS = 0.05
LARGEST = 1e6
MEASURED: dict[str, Scalar] = {"privacy.exact-figures": True}
"""So that a run with noise still tells its accuracies, which the table needs."""
SETTINGS: Mapping[str, Mapping[str, Scalar]] = {
    "no noise": {},
    "signature, epsilon 8": {"privacy.signature-noise": 0.6002},
    "signature, epsilon 2": {"privacy.signature-noise": 1.9939},
    "signature, epsilon 0.5": {"privacy.signature-noise": 7.0319},
    "adapter clipped to 1, noise 0.001": {"privacy.adapter-noise": 0.001},
    "adapter clipped to 1, noise 0.01": {"privacy.adapter-noise": 0.01},
    "adapter clipped to 1, noise 0.1": {"privacy.adapter-noise": 0.1},
}
console = Console()


def main(
    seeds: Annotated[int, typer.Option(help="seeds 0, 1, ...")] = 3,
    rounds: Annotated[int, typer.Option(help="rounds of a run")] = 30,
    to: Annotated[Path, typer.Option(help="json file; what is in it is not run again")] = RESULT,
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time, one core each")] = 2,
) -> None:
    """Run the digits with each noise, attack every seen client's releases, and print the table."""
    known = json.loads(to.read_text(encoding="utf-8"))["runs"] if to.exists() else {}
    found: dict[str, list[dict[str, Any]]] = {name: known.get(name, []) for name in SETTINGS}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for name, settings in SETTINGS.items():
            missing = range(len(found[name]), seeds)
            wanted = [{**settings, **MEASURED, "seed": seed, "federation.rounds": rounds} for seed in missing]
            found[name] += pool.map(attacked_run, wanted)
            write_json(to, {"commit": current_commit(), "rounds": rounds, "settings": SETTINGS, "runs": found})
            console.print(f"{name}: {len(found[name])} runs")
    console.print(membership_table(found), soft_wrap=True)


def attacked_run(settings: Mapping[str, Scalar]) -> dict[str, Any]:
    """Make one run and return the attacker's success on each kind of release, accuracies and epsilons.

    An accuracy is 0 where noise had grown so far that no client could use what it was sent.
    """
    from client_app.app import app

    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hyperlora-membership-") as scratch:
        config = RunConfig.parse({**settings, "run.output-dir": scratch})
        strategy = build_strategy(config, build_model(config.data, config.model, config.lora))
        grid = LocalGrid(app, config.flat(), NODES, remembers=False)
        strategy.start(grid, num_rounds=config.federation.rounds)
    runtime = open_runtime(config)
    nobody = {"zero_step": {"mean": 0.0}, "k_step": {"mean": 0.0}}
    evaluation = strategy.record.evaluation.get("seen", nobody)
    asked = sum(map(len, strategy.history.cohorts.values())) / max(len(_seen(strategy)), 1)
    ledger = strategy.ledger
    return {
        "epsilon_signature": ledger.epsilon(1, 0) if config.privacy.signature_noise else None,
        "epsilon_run": ledger.epsilon(1, round(asked)) if config.privacy.adapter_noise else None,
        "zero_step": evaluation["zero_step"]["mean"],
        "k_step": evaluation["k_step"]["mean"],
        "attacks": {
            "signature": success(signature_scores(strategy, runtime)),
            "start as received": success(adapter_scores(strategy, runtime, trained=False)),
            "adapter sent back": success(adapter_scores(strategy, runtime, trained=True)),
        },
    }


def success(scores: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the mean area under the clients' ROC curves and the pooled share of members found at 5 % false alarms."""
    areas, truths, marks = [], [], []
    for members, others in scores.values():
        truth = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
        score = torch.cat([members, others])
        areas.append(float(roc_auc_score(truth, score)))
        truths.append(truth)
        marks.append((score - others.mean()) / others.std().clamp_min(1e-6))
    false, true, _ = roc_curve(torch.cat(truths), torch.cat(marks))
    found = max(float(one) for one, alarms in zip(true, false, strict=True) if alarms <= FALSE_ALARMS)
    return {"auc": mean(areas), "found": found}


def signature_scores(strategy: LoraStrategy, runtime: ClientRuntime) -> dict[str, tuple[Tensor, Tensor]]:
    """Return for each seen client the attacker's scores of its training and of its test samples, by its signature."""
    told = {name: _moments(card.signature) for name, card in strategy.roster.cards.items()}
    scores = {}
    for name in _seen(strategy):
        others = torch.stack([one for other, one in told.items() if other != name])
        centre, scale = others.mean(dim=0), others.std(dim=0).clamp_min(1e-3)
        direction = (told[name] - centre) / scale
        parts = [_descriptions(runtime, name, split) for split in ("train", "test")]
        members, outside = ((((part - centre) / scale) @ direction) for part in parts)
        scores[name] = (members, outside)
    return scores


def adapter_scores(
    strategy: LoraStrategy, runtime: ClientRuntime, *, trained: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the attacker's scores by the start made for each seen client, or by what it sends back of it."""
    anchor = strategy.method.anchor(strategy.state)
    if anchor is None:
        raise ValueError("the method has no anchor to calibrate by")
    scores = {}
    for name, (card, start) in strategy.final_adapters().items():
        if not card.trains:
            continue
        adapter = _sent_back(strategy, runtime, name, start) if trained else start
        prior, gamma = card.signature.class_frequencies, runtime.config.prior_strength
        losses = [
            [_losses(runtime, name, split, add_prior(one, prior, gamma)) for one in (anchor, adapter)]
            for split in ("train", "test")
        ]
        members, outside = (general - own for general, own in losses)
        scores[name] = (members, outside)
    return scores


def _sent_back(strategy: LoraStrategy, runtime: ClientRuntime, name: str, start: Adapter) -> Adapter:
    request = TrainRequest(name, strategy.record.server_round + 1, runtime.config.train.local_steps, Start(start))
    return train_start(runtime, request, NothingKept()).end


def _seen(strategy: LoraStrategy) -> list[str]:
    return [name for name, card in sorted(strategy.roster.cards.items()) if card.trains]


def _moments(signature: Signature) -> Tensor:
    mean_, std = signature.feature_mean, signature.feature_std
    return torch.cat([mean_, mean_.square() + std.square(), signature.class_frequencies])


@torch.inference_mode()
def _descriptions(runtime: ClientRuntime, name: str, split: str) -> Tensor:
    samples = runtime.tokens(name, split)
    features = torch.cat([runtime.model.frozen_features(part) for part in torch.split(samples.tokens, PREFIX_BATCH)])
    labels = F.one_hot(samples.labels, len(runtime.federation.class_names)).float()
    return torch.cat([features, features.square(), labels], dim=1)


@torch.inference_mode()
def _losses(runtime: ClientRuntime, name: str, split: str, adapter: Adapter) -> Tensor:
    samples = runtime.tokens(name, split)
    runtime.model.load(adapter)
    losses = F.cross_entropy(runtime.model.logits(samples.tokens), samples.labels, reduction="none")
    return torch.nan_to_num(losses, nan=LARGEST, posinf=LARGEST)


if __name__ == "__main__":
    typer.run(main)
