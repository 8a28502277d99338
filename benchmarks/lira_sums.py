"""``python -m benchmarks.lira_sums``: what tells a server who is in a client's data, in an open run and in one of sums?

The attack with shadow models of :mod:`benchmarks.lira` on what the server of each mode is handed: a client's class
statistics and adapter (open), their sums over clients (``privacy.mode = "sums"``), and the same with noise
(``privacy.epsilon``). The attacker has every client's training and test samples mixed and knows how many were trained
on. Of the other clients in a sum it draws shadows as well; with noise it is given all that the others tell, so that the
noise alone is in its way. All clients start from the anchor of a finished run on the digits. Development seeds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.attack_tables import lira_table
from benchmarks.lira import Target, finished_run, mean_scores
from benchmarks.membership import success
from benchmarks.result import current_commit, write_json
from hyperlora.cli.settings import parse_override
from hyperlora.config.schema import Scalar
from hyperlora.messages.movements import MOVEMENTS
from hyperlora.messages.noised_questions import units_of
from hyperlora.noise import simulated_noise
from hyperlora.secure_sum.noised_vector import Unit
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter, combine
from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from models.sums.shared_factor import framed, moved, movement
from strategies.sums.noise_plan import NoisePlan

RESULT = Path(__file__).parent / "results" / "lira-sums.json"
EPSILON, DELTA, FEW, CLIP, SIDE = 8.0, 1e-5, 5, 1.5, "B"
"""Of a whole run; fewest clients of a sum, as ``privacy.least-clients``; and clip and factor of a movement."""
Sums = Mapping[str, Tensor]
Release = Callable[[Target, int], Tensor]
"""Gives what a release of one draw of a client says of each sample of the client's mixture, (n,)."""


def main(
    seeds: Annotated[int, typer.Option(help="seeds 0, 1, ...")] = 3,
    rounds: Annotated[int, typer.Option(help="rounds of a run")] = 10,
    shadows: Annotated[int, typer.Option(min=16, help="shadow models of each client")] = 16,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for every run")] = None,
    to: Annotated[Path, typer.Option(help="json file; what is in it is not run again")] = RESULT,
) -> None:
    """Run the digits, attack every seen client in each mode, and print the table."""
    logging.basicConfig(level=logging.ERROR)
    own = dict(map(parse_override, override or []))
    found: list[dict[str, Any]] = json.loads(to.read_text(encoding="utf-8"))["runs"] if to.exists() else []
    for seed in range(len(found), seeds):
        found.append(attacked_run(seed, rounds, shadows, own))
        write_json(to, {"commit": current_commit(), "rounds": rounds, "shadows": shadows, "runs": found})
    typer.echo(lira_sums_table(found))


def lira_sums_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each release, with the epsilon of the run that it is one of."""
    return lira_table(runs, "epsilon of the run")


def attacked_run(seed: int, rounds: int, shadows: int, overrides: Mapping[str, Scalar]) -> dict[str, Any]:
    """Make one run and return by release the attacker's success, and the epsilon of the run that it is one of."""
    strategy, runtime, anchor = finished_run(seed, rounds, overrides)
    names = [name for name, card in strategy.roster.cards.items() if card.trains]
    attack = Attack({name: Target.of(runtime, name, anchor, anchor) for name in names}, anchor, shadows, rounds)
    return {release: {**success(marks), "epsilon": epsilon} for release, epsilon, marks in attack.made()}


@dataclass(frozen=True)
class Attack:
    """All clients of a run as targets, with what each would tell of its true and of its shadow sets.

    Attributes:
        targets: by name.
        anchor: that all start from.
        shadows: sets of each client; the draw 0 is its true one.
        rounds: of the run whose epsilon the noise is planned for.
    """

    targets: Mapping[str, Target]
    anchor: Adapter
    shadows: int
    rounds: int

    def made(self) -> list[tuple[str, float | None, dict[str, tuple[Tensor, Tensor]]]]:
        """Return every release with its epsilon, and by client the likelihood ratios of members and of others."""
        every = len(self.targets)
        releases: list[tuple[str, float | None, Release]] = [
            ("class statistics, open", None, partial(self.of_class_sums, 1)),
            (f"class statistics, sum over {FEW} clients", None, partial(self.of_class_sums, FEW)),
            (f"class statistics, sum over {every} clients", None, partial(self.of_class_sums, every)),
            ("adapter, open", None, partial(self.of_adapters, 1)),
            (f"adapter, average of {FEW} clients", None, partial(self.of_adapters, FEW)),
            (f"adapter, average of {every} clients", None, partial(self.of_adapters, every)),
            ("movement of one factor, one client's", None, partial(self.of_movement, 0.0)),
            ("movement of one factor, with noise", EPSILON, partial(self.of_movement, self.noise_of_movements)),
        ]
        return [(name, epsilon, self.ratios(release)) for name, epsilon, release in releases]

    def ratios(self, release: Release) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by client the log likelihood ratios of members (m,) and of others (n - m,)."""
        found = {}
        for name, one in self.targets.items():
            true, *made = (release(one, draw) for draw in range(self.shadows + 1))
            found[name] = one.ratios(true, torch.stack(made), self.sets[name][1:])
        return found

    def of_class_sums(self, clients: int, target: Target, draw: int) -> Tensor:
        """Score samples by the class means of so many clients together, (n,)."""
        told = [self.statistics[name][draw] for name in self.together(target.name, clients)]
        sums, counts = (torch.stack([getattr(one, part) for one in told]).sum(dim=0) for part in ("sums", "counts"))
        scatter = torch.stack([one.dense_scatter() for one in told]).sum(dim=0)
        freedom = sum(one.freedom for one in told)
        means = sums / counts.clamp_min(1.0)[:, None]
        return mean_scores(means, scatter / max(freedom, 1.0), target.features, target.tokens.labels)

    def of_adapters(self, clients: int, target: Target, draw: int) -> Tensor:
        """Score samples by the average adapter of so many clients, (n,)."""
        told = [self.trained[name][draw] for name in self.together(target.name, clients)]
        average = combine(told, [1 / clients] * clients).truncated(self.anchor.rank)
        return target.confidence(average)

    def of_movement(self, noise: float, target: Target, draw: int) -> Tensor:
        """Score samples by the anchor after a client's movement of one factor, with noise of one sum, (n,)."""
        start = self.start_of_factor
        own = movement(start, self.trained_factor[target.name][draw], SIDE)
        length = float(torch.cat([one.flatten() for one in own.values()]).norm())
        cut = {name: one.double() * min(1.0, CLIP / max(length, 1e-12)) for name, one in own.items()}
        return target.confidence(moved(start, self._noised(cut, MOVEMENTS[SIDE], noise, target, draw), SIDE))

    def _noised(self, told: Sums, kind: str, noise: float, target: Target, draw: int) -> Sums:
        units: Mapping[str, Unit] = units_of(kind, self.anchor, 1, CLIP)
        made = simulated_noise(derive_seed("lira", target.name, draw, kind))
        return {name: one + noise * units[name].length * made(one.shape) for name, one in told.items()}

    def together(self, name: str, clients: int) -> Sequence[str]:
        """Return a client and those that are in a sum with it."""
        names = list(self.targets)
        place = names.index(name)
        return [names[(place + step) % len(names)] for step in range(clients)]

    @cached_property
    def sets(self) -> dict[str, list[Tensor]]:
        """By client its true set and its shadow sets."""
        return {name: one.sets(self.shadows) for name, one in self.targets.items()}

    @cached_property
    def statistics(self) -> dict[str, list[ClassStatistics]]:
        """By client the class statistics of its sets."""
        classes = len(self.anchor.head)
        return {
            name: [
                compute_class_statistics(
                    one.features[chosen], one.tokens.labels[chosen], num_classes=classes, rank=classes
                )
                for chosen in self.sets[name]
            ]
            for name, one in self.targets.items()
        }

    @cached_property
    def trained(self) -> dict[str, list[Adapter]]:
        """By client what it makes of the anchor with its sets."""
        return self._trained(self.anchor, "all")

    @cached_property
    def trained_factor(self) -> dict[str, list[Adapter]]:
        """By client what it makes of the anchor with its sets where it trains one factor."""
        return self._trained(self.start_of_factor, SIDE)

    def _trained(self, start: Adapter, trains: str) -> dict[str, list[Adapter]]:
        return {
            name: [one.trained(start, chosen, draw, trains) for draw, chosen in enumerate(self.sets[name])]
            for name, one in self.targets.items()
        }

    @cached_property
    def start_of_factor(self) -> Adapter:
        """The anchor as it is framed for clients that train one factor."""
        any_one = next(iter(self.targets.values()))
        return framed(self.anchor, any_one.runtime.model.fresh_adapter(any_one.runtime.config.seed), SIDE)

    @property
    def noise_of_movements(self) -> float:
        """Noise multiplier of one movement."""
        return self._plan.noise(MOVEMENTS[SIDE])

    @property
    def _plan(self) -> NoisePlan:
        clients = len(self.targets)
        return NoisePlan(EPSILON, DELTA, self.rounds, 1, clients, clients)


if __name__ == "__main__":
    typer.run(main)
