"""``python -m benchmarks.lira``: the likelihood-ratio attack with shadow models on what a client releases.

The attacker has a client's training and test samples mixed, knows how many were trained on, the start that the client
was sent and how clients compute what they release, and says which were members (LiRA: Carlini et al. 2022, "Membership
inference attacks from first principles", the online attack with one variance for all samples). It draws shadow sets of
the client's size out of the mixture, makes the same release of each, and compares the true release with those whose
shadow set held a sample and those whose did not. That is more than an attacker of a real federation knows.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.attack_tables import lira_table
from benchmarks.local_grid import LocalGrid
from benchmarks.membership import success
from benchmarks.result import current_commit, write_json
from benchmarks.run_job import NODES
from client_app.app import app
from client_app.privacy import _released
from client_app.runtime import ClientRuntime, open_runtime
from hyperlora.accounting import composed_epsilon
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.noise import simulated_noise
from hyperlora.seeds import derive_seed
from hyperlora.task import build_model
from models.adapters.adapter import Adapter
from models.adapters.optimizers import OptimizerSpec
from models.adapters.training import LocalTrainer, TokenSet
from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.personalization.prior import remove_prior
from models.personalization.signature import Signature, compute_signature, private_signature
from server_app.run import build_strategy
from strategies.engine.strategy import LoraStrategy

BATCH = 64
RESULT = Path(__file__).parent / "results" / "lira.json"
SIGNATURE_NOISE = {"8": 0.6002, "2": 1.9939, "0.5": 7.0319}
"""Epsilon of one signature at delta 1e-5 -> noise multiplier."""
ADAPTER_NOISE, ADAPTER_CLIP, DELTA = (0.001, 0.01, 0.1, 1.0), 1.0, 1e-5
Scores = dict[str, Tensor]
"""Release -> a number for each sample of the mixture, larger for a member."""


def main(
    seeds: Annotated[int, typer.Option(help="seeds 0, 1, ...")] = 3,
    rounds: Annotated[int, typer.Option(help="rounds of a run")] = 10,
    shadows: Annotated[int, typer.Option(min=16, help="shadow models of each client")] = 16,
    to: Annotated[Path, typer.Option(help="json file; what is in it is not run again")] = RESULT,
) -> None:
    """Run the digits, attack every seen client's releases, and print the table."""
    logging.basicConfig(level=logging.ERROR)
    found: list[dict[str, Any]] = json.loads(to.read_text(encoding="utf-8"))["runs"] if to.exists() else []
    for seed in range(len(found), seeds):
        found.append(attacked_run(seed, rounds, shadows))
        write_json(to, {"commit": current_commit(), "rounds": rounds, "shadows": shadows, "runs": found})
    typer.echo(lira_table(found))


def finished_run(
    seed: int, rounds: int, overrides: Mapping[str, Scalar]
) -> tuple[LoraStrategy, ClientRuntime, Adapter]:
    """Make one run on the digits and return its strategy, the clients' runtime and the last anchor."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hyperlora-lira-") as scratch:
        values = {"seed": seed, "federation.rounds": rounds, "federation.evaluate-every": rounds, **overrides}
        config = RunConfig.parse({**values, "run.output-dir": scratch})
        strategy = build_strategy(config, build_model(config.data, config.model, config.lora))
        strategy.start(LocalGrid(app, config.flat(), NODES, remembers=False), num_rounds=rounds)
    anchor = strategy.method.anchor(strategy.state)
    if anchor is None:
        raise ValueError("the method has no anchor to take class statistics with")
    return strategy, open_runtime(config), anchor


def attacked_run(seed: int, rounds: int, shadows: int) -> dict[str, Any]:
    """Make one run and return by release the attacker's success, and the epsilon of the release."""
    strategy, runtime, anchor = finished_run(seed, rounds, {})
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, (card, start) in strategy.final_adapters().items():
        if card.trains:
            for release, marks in Target.of(runtime, name, start, anchor).attacked(shadows).items():
                found.setdefault(release, {})[name] = marks
    epsilons = {release: _epsilon(release) for release in found}
    return {release: {**success(marks), "epsilon": epsilons[release]} for release, marks in found.items()}


def _epsilon(release: str) -> float | None:
    """Return the epsilon of one release; None for one without noise."""
    amount = release.partition(", noise ")[2]
    return composed_epsilon([(float(amount), 1)], DELTA) if amount else None


@dataclass(frozen=True)
class Target:
    """One client: its members and others mixed, in that order, with what every release is made of.

    Attributes:
        runtime: of the process.
        name: the client.
        start: what the client was sent.
        tokens: members first, then others.
        frozen: (n, d) features of the frozen backbone, for signatures.
        features: (n, d) features with the anchor, for class statistics.
        members: number of members m.
    """

    runtime: ClientRuntime
    name: str
    start: Adapter
    tokens: TokenSet
    frozen: Tensor
    features: Tensor
    members: int

    @classmethod
    @torch.inference_mode()
    def of(cls, runtime: ClientRuntime, name: str, start: Adapter, anchor: Adapter) -> Target:
        """Mix a client's training and test samples."""
        train, test = (runtime.tokens(name, split) for split in ("train", "test"))
        tokens = TokenSet(torch.cat([train.tokens, test.tokens]), torch.cat([train.labels, test.labels]))
        parts = torch.split(tokens.tokens, BATCH)
        frozen = torch.cat([runtime.model.frozen_features(part) for part in parts])
        runtime.model.load(anchor)
        features = torch.cat([runtime.model.features(part) for part in parts])
        return cls(runtime, name, start, tokens, frozen.clone(), features.clone(), len(train))

    def attacked(self, shadows: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by release the attacker's log likelihood ratios of members and of others."""
        sets = self.sets(shadows)
        true, *made = (self.scores(chosen, draw) for draw, chosen in enumerate(sets))
        return {
            release: self.ratios(score, torch.stack([one[release] for one in made]), sets[1:])
            for release, score in true.items()
        }

    def sets(self, shadows: int) -> list[Tensor]:
        """Return the places of the members, then of the samples of each shadow set."""
        chance = torch.Generator().manual_seed(derive_seed("shadows", self.name))
        drawn = [torch.randperm(len(self.tokens), generator=chance)[: self.members] for _ in range(shadows)]
        return [torch.arange(self.members), *drawn]

    def ratios(self, true: Tensor, made: Tensor, drawn: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the log likelihood ratios of members and of others.

        Args:
            true: (n,) scores by the true release.
            made: (shadows, n) scores by those of shadow sets.
            drawn: the shadow sets.
        """
        inside = torch.stack([torch.zeros(len(self.tokens)).index_fill(0, chosen, 1.0) for chosen in drawn])
        ratio = likelihood_ratios(true, made, inside.bool())
        return ratio[: self.members], ratio[self.members :]

    def scores(self, chosen: Tensor, draw: int) -> Scores:
        """Return what each release made of the samples ``chosen`` says of every sample; noise follows from ``draw``."""
        classes = len(self.runtime.federation.class_names)
        labels = self.tokens.labels
        told = compute_class_statistics(self.features[chosen], labels[chosen], num_classes=classes, rank=classes)
        found = {"class statistics": class_scores(told, self.features, labels)}
        for release, signature in self._signatures(chosen, draw, classes):
            found[release] = moment_scores(signature, self.frozen)
        for release, adapter in self._adapters(chosen, draw):
            found[release] = self.confidence(adapter)
        return found

    def _signatures(self, chosen: Tensor, draw: int, classes: int) -> Iterator[tuple[str, Signature]]:
        smoothing = self.runtime.config.signature.smoothing
        features, labels = self.frozen[chosen], self.tokens.labels[chosen]
        yield "signature", compute_signature(features, labels, num_classes=classes, smoothing=smoothing)
        for noise in SIGNATURE_NOISE.values():
            noised = private_signature(
                features,
                labels,
                num_classes=classes,
                smoothing=smoothing,
                clip=self.runtime.config.privacy.signature_clip,
                noise=noise,
                draw=simulated_noise(derive_seed("lira", self.name, draw, str(noise))),
                reported_examples=len(chosen),
            )
            yield f"signature, noise {noise:g}", noised

    def _adapters(self, chosen: Tensor, draw: int) -> Iterator[tuple[str, Adapter]]:
        end = self.trained(self.start, chosen, draw)
        yield "personalised adapter", end
        for noise in ADAPTER_NOISE:
            seed = derive_seed("lira", self.name, draw, str(noise))
            moved = _released(self.start.tensors(), end.tensors(), ADAPTER_CLIP, noise, simulated_noise(seed))
            yield f"personalised adapter, noise {noise:g}", Adapter.from_tensors(moved)

    def trained(self, start: Adapter, chosen: Tensor, draw: int, trains: str = "all") -> Adapter:
        """Return ``start`` after the client's local steps on the samples ``chosen``, as it would send it back."""
        samples = TokenSet(self.tokens.tokens[chosen], self.tokens.labels[chosen])
        model, train = self.runtime.model, self.runtime.config.train
        model.load(self.runtime.with_prior(self.name, start))
        optimizer = OptimizerSpec(train.optimizer, train.learning_rate, train.weight_decay)
        seed = derive_seed("lira", self.name, draw)
        with model.prepared(trains, None, None):
            trainer = LocalTrainer(model, samples, optimizer=optimizer, batch_size=train.batch_size, seed=seed)
            trainer.run(train.local_steps)
        frequencies = self.runtime.frequencies(self.name)
        return remove_prior(model.extract(), frequencies, self.runtime.config.prior_strength)

    @torch.inference_mode()
    def confidence(self, adapter: Adapter) -> Tensor:
        """Return log(p / (1 - p)) of every sample's own class, as Carlini et al."""
        self.runtime.model.load(self.runtime.with_prior(self.name, adapter))
        logits = torch.nan_to_num(self.runtime.model.logits(self.tokens.tokens).double())
        own = F.one_hot(self.tokens.labels, logits.shape[1]).bool()
        others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        return (logits[own] - others).float().clone()


def class_scores(told: ClassStatistics, features: Tensor, labels: Tensor) -> Tensor:
    """Return minus the Mahalanobis distance of each sample to the mean that is told of its class, (n,)."""
    means = told.sums / told.counts.clamp_min(1.0)[:, None]
    return mean_scores(means, told.dense_scatter() / max(told.freedom, 1.0), features, labels)


def mean_scores(means: Tensor, covariance: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return minus the Mahalanobis distance of each sample to the mean of its class, (n,).

    Args:
        means: (C, d) of classes.
        covariance: (d, d) within classes.
        features: (n, d).
        labels: (n,) classes.
    """
    covariance = covariance + 0.1 * covariance.diagonal().mean() * torch.eye(len(covariance))
    away = features - means[labels]
    distances: Tensor = (away * torch.linalg.solve(covariance, away.mT).mT).sum(dim=1)
    return -distances


def moment_scores(told: Signature, features: Tensor) -> Tensor:
    """Return the inner product of each sample's standardised moments with those that are told, (n,)."""
    centre, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-3)
    second = features.square()
    middle, spread = second.mean(dim=0), second.std(dim=0).clamp_min(1e-3)
    first = ((features - centre) / scale) @ ((told.feature_mean - centre) / scale)
    squares = told.feature_mean.square() + told.feature_std.square()
    return first + ((second - middle) / spread) @ ((squares - middle) / spread)


def likelihood_ratios(true: Tensor, made: Tensor, inside: Tensor) -> Tensor:
    """Return log N(s | with) - log N(s | without) of every sample.

    Args:
        true: (n,) scores by the true release.
        made: (shadows, n) scores by the shadows' releases.
        inside: (shadows, n) which shadow set held which sample.
    """
    with_it, without = inside.float(), 1.0 - inside.float()
    centre = {
        name: (weight * made).sum(dim=0) / weight.sum(dim=0).clamp_min(1.0)
        for name, weight in (("in", with_it), ("out", without))
    }
    left = made - torch.where(inside, centre["in"], centre["out"])
    variance = left.square().mean().clamp_min(1e-12)
    ratios = ((true - centre["out"]).square() - (true - centre["in"]).square()) / (2 * variance)
    known = (inside.any(dim=0)) & (~inside).any(dim=0)
    return ratios.masked_fill(~known, 0.0)


if __name__ == "__main__":
    typer.run(main)
