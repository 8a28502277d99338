"""``python -m benchmarks.central_privacy``: accuracy against epsilon where the server gets nothing but sums with noise.

A run is the product's own (:class:`strategies.sums.noised.NoisedSumsStrategy`) on clients of this process. What is not
the product's is the channel: the sums are taken here without masks, and their noise is that of a federation of
``--clients`` clients, of which each one here stands for as many alike. That says what the noise of so many costs; what
more clients would know besides it does not say. Epsilon is of a client over the whole run, without any amplification by
sampling, so that it holds against the server; noise is what a sum has in which everybody answers. Development seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Annotated, Any

import torch
import typer
from flwr.serverapp import Grid
from torch import Tensor

from benchmarks.local_grid import LocalGrid
from benchmarks.study import SEEDS, Overrides, Seeds, Study, Target, given
from benchmarks.suite import HERE
from benchmarks.sums import GROUPS, OPEN, SUMS, configured, described, difference, mean_of
from benchmarks.table import markdown
from client_app.app import app
from client_app.noised_sums import NoisedClient
from client_app.runtime import ClientRuntime, open_runtime
from client_app.sums import sizes_of
from client_app.tasks import NothingKept
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.questions import Question, layout
from hyperlora.messages.sums import SumRequest
from hyperlora.noise import simulated_noise
from hyperlora.secure_sum.noised_vector import NoisedVector
from hyperlora.seeds import derive_seed
from hyperlora.task import build_model
from models.adapters.adapter import Adapter
from server_app.run import build_strategy
from strategies.engine.records import RoundRecord
from strategies.sums.channel import Summed
from strategies.sums.noise_plan import NoisePlan
from strategies.sums.noised import NoisedSumsStrategy

RESULT = HERE / "results" / "central-privacy.json"
BASELINE = HERE / "results" / "sums.json"
SETTING = "120 clients"
NO_NOISE = 0.0
POINTS: Sequence[tuple[float, int]] = (
    (8.0, 1000),
    (NO_NOISE, 120),
    (8.0, 10000),
    (2.0, 10000),
    (2.0, 1000),
    (8.0, 120),
)
"""Epsilon and number of clients."""
DELTA = 1e-5
OURS: Mapping[str, Scalar] = {
    "privacy.mode": "sums",
    "privacy.delta": DELTA,
    "privacy.adapter-clip": 1.5,
    "federation.rounds": 10,
    "federation.evaluate-every": 10,
    "federation.evaluate-steps": "0",
    "federation.clients-per-round": 44,
}


@dataclass(frozen=True)
class ScaledPlan(NoisePlan):
    """The noise of a federation of ``stands_for`` times as many clients, for sums over those that are there."""

    stands_for: float = 1.0

    def noise(self, kind: str) -> float:
        """Return the noise in units of one of the clients that are there."""
        return super().noise(kind) / self.stands_for


@dataclass(frozen=True)
class RememberingClient(NoisedClient):
    """Computes its features behind the served anchor once: there is one evaluation."""

    features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def _features(self, anchor: Adapter, split: str) -> tuple[Tensor, Tensor]:
        name = self.request.client_id
        if name not in self.features:
            self.features[name] = super()._features(anchor, split)
        return self.features[name]


@dataclass
class Channel:
    """Takes sums in this process, and keeps what clients score as it is (a channel of ``strategies.sums.channel``)."""

    runtime: ClientRuntime
    share: float
    accuracies: dict[str, float] = field(default_factory=dict)
    features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def ask(self, grid: Grid, names: Sequence[str], question: Question, record: RoundRecord) -> Summed:
        """Return the sum of clients' answers with its noise."""
        sizes = replace(sizes_of(self.runtime, len(names)), share=1.0)
        form = layout(replace(question, noise=1e-6), sizes)
        assert isinstance(form, NoisedVector)
        told = [self._told(name, question, record.server_round, form) for name in names]
        sums = {part: torch.stack([one[part] for one in told]).sum(dim=0) for part in told[0]}
        draw = simulated_noise(derive_seed(self.runtime.config.seed, record.server_round, question.kind, len(names)))
        scale = question.noise / self.share**0.5
        noised = {part: one + scale * form.units[part].length * draw(one.shape) for part, one in sums.items()}
        return Summed(noised, list(names))

    def _told(self, name: str, question: Question, server_round: int, form: NoisedVector) -> dict[str, Tensor]:
        request = SumRequest(name, server_round, "", "masked")
        client = RememberingClient(self.runtime, request, NothingKept(), self.features)
        told = client.answer(question)
        if question.kind == "noised scores":
            self.accuracies[name] = float(told["accuracy"][0])
        return form.decode(form.encode(told, lambda shape: torch.zeros(*shape).double(), form.clients))


def measured(config: RunConfig, clients: int) -> tuple[dict[str, float], list[str], float]:
    """Return the test accuracies of all clients as received, who of them trains, and the epsilon that was spent."""
    runtime = open_runtime(config)
    training = [name for name in runtime.federation.client_ids if runtime.client(name).trains]
    strategy = build_strategy(config, build_model(config.data, config.model, config.lora))
    assert isinstance(strategy, NoisedSumsStrategy)
    rounds, cohort = config.federation.rounds, config.federation.clients_per_round
    stands_for = clients / len(runtime.federation.client_ids)
    plan = ScaledPlan(config.privacy.epsilon, DELTA, rounds, 1, cohort, len(training), stands_for)
    channel = Channel(runtime, config.privacy.least_share)
    vars(strategy).update(plan=plan, _channel=channel)
    grid = LocalGrid(app, config.flat(), len(runtime.federation.client_ids), remembers=False)
    strategy.start(grid, num_rounds=rounds)
    spent = NoisePlan(config.privacy.epsilon, DELTA, rounds, 1, cohort, len(training)).spent(rounds, 1)
    return channel.accuracies, training, spent


def main(
    seed: Seeds = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="epsilons; 0 is no noise; all by default")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="numbers of clients; all by default")] = None,
    override: Overrides = None,
    to: Target = RESULT,
) -> None:
    """Make the runs that are missing, seeds outermost, and print the tables."""
    study, values = Study(to), given(override)
    chosen = [one for one in POINTS if one[0] in (epsilon or [one[0]]) and one[1] in (clients or [one[1]])]
    points = product(seed or SEEDS, chosen)
    for point in study.missing({"epsilon": one[0], "clients": one[1], "seed": number} for number, one in points):
        budget, own = point["epsilon"], {**OURS, "privacy.epsilon": point["epsilon"] or 1e4, **values}
        config = configured(SETTING, point["seed"], own)
        row, seen, spent = measured(config, point["clients"] if budget else 10**9)
        study.add(point, {"spent": spent, "config": described(config), "row": row, "seen": seen})
    study.say(central_privacy_table(study.runs))


def central_privacy_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a markdown table: accuracies as received, and differences to the open run of the same seeds.

    Args:
        runs: of :func:`main`'s file.
    """
    baseline = {
        run["seed"]: run
        for run in json.loads(BASELINE.read_text(encoding="utf-8"))["runs"]
        if run["setting"] == SETTING
    }
    seeds, commits = sorted({run["seed"] for run in runs}), sorted({run["commit"] for run in runs})
    found: dict[str, list[Mapping[str, Any]]] = {
        name: [{**run, "row": run["rows"][name]} for run in baseline.values()] for name in (OPEN, SUMS)
    }
    for epsilon, clients in POINTS:
        noise = f"epsilon {epsilon:g}, {clients:,} clients" if epsilon else "the sums that get noise, without it"
        found[noise] = [run for run in runs if (run["epsilon"], run["clients"]) == (epsilon, clients)]
    rows = {f"{name}{_seeds_of(own, seeds)}": _cells(own, baseline) for name, own in found.items() if own}
    columns = [*GROUPS, *(f"{group}, minus {OPEN}" for group in GROUPS)]
    note = (
        f"Percent and points, as received; PACS at Dirichlet 0.5, 120 clients; delta {DELTA:g}; seeds "
        f"{', '.join(map(str, seeds))}; 95 % intervals of a bootstrap over seeds and clients; made at commit "
        f"{', '.join(commits)}."
    )
    return "\n\n".join([markdown("server", columns, rows), note])


def _seeds_of(runs: Sequence[Mapping[str, Any]], every: Sequence[int]) -> str:
    """Return the seeds of a row where they are not those of all rows."""
    own = sorted({run["seed"] for run in runs})
    return "" if own == list(every) else f" (seed {', '.join(map(str, own))})"


def _cells(runs: Sequence[Mapping[str, Any]], baseline: Mapping[int, Mapping[str, Any]]) -> list[str]:
    means = [mean_of(runs, group) for group in GROUPS]
    paired = [run for run in runs if run["seed"] in baseline]
    others = [{**baseline[run["seed"]], "row": baseline[run["seed"]]["rows"][OPEN]} for run in paired]
    return means + [difference(paired, others, group) if paired else "" for group in GROUPS]


if __name__ == "__main__":
    typer.run(main)
