"""Which settings each variant gets: those of the lowest validation loss, recorded with everything that was tried.

The settings of rounds are those of the trial with the lowest loss, as received or after the best budget of use,
whichever is lower; the budget of use (rate and number of steps, 0 where adapting helps nowhere) is the best of that
trial. A trial's loss is the mean over the suite's seeds and settings, infinite where a run is missing. Where only some
of the seen clients tried the budgets, a budget's loss is all clients' as received plus what it changed for those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.suite import TUNED, Job
from hyperlora.config.schema import Scalar

Budget = tuple[float, int]
RATE, STEPS = "train.adapt-learning-rate", "train.adapt-steps"


@dataclass(frozen=True)
class Trial:
    """One trial of a variant.

    Attributes:
        settings: of rounds.
        as_received: mean validation loss before any local step.
        adapted: budget of use -> mean validation loss; empty where no budgets were tried.
        rounds: mean validation loss after the steps and at the rate of rounds.
    """

    settings: Mapping[str, Scalar]
    as_received: float
    adapted: Mapping[Budget, float]
    rounds: float

    @property
    def budget(self) -> Budget | None:
        """The best budget of use; None where none was tried or none is better than what is received."""
        best = min(self.adapted, key=lambda budget: (self.adapted[budget], budget[::-1]), default=None)
        return best if best is not None and self.adapted[best] < self.as_received else None

    @property
    def loss(self) -> float:
        """What the trial is judged by."""
        return min(self.as_received, *(self.adapted.values() or [self.rounds]))

    def chosen(self) -> dict[str, Scalar]:
        """Return the settings that a report gets if this trial is the best."""
        if not self.adapted:
            return dict(self.settings)
        return {**self.settings, **({RATE: self.budget[0], STEPS: self.budget[1]} if self.budget else {STEPS: 0})}


def choose(suite: str, jobs: Sequence[Job], results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Write ``benchmarks/tuned/<suite>.toml`` from the runs that are there and return its text.

    Args:
        suite: name of the tuning suite's file.
        jobs: its runs.
        results: setting of the suite -> variant -> runs.
    """
    text = "".join(_entry(name, tried) for name, tried in tried_of(jobs, results).items())
    TUNED.mkdir(exist_ok=True)
    (TUNED / f"{suite}.toml").write_text(text, encoding="utf-8")
    return text


def tried_of(
    jobs: Sequence[Job], results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
) -> dict[str, list[Trial]]:
    """Return by variant its trials in the order of the grid; variants without any run are left out."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    wanted: dict[str, int] = {}
    trials: dict[str, Mapping[str, Scalar]] = {}
    for job in jobs:
        found = results.get(job.suite, {}).get(job.variant, [])
        runs.setdefault(job.variant, []).extend(run for run in found if run["seed"] == job.config.seed)
        wanted[job.variant] = wanted.get(job.variant, 0) + 1
        trials[job.variant] = job.trial
    tried: dict[str, list[Trial]] = {}
    for label, own in runs.items():
        if own:
            tried.setdefault(label.split(" @ ")[0], []).append(_trial(trials[label], own, wanted[label]))
    return tried


def _trial(settings: Mapping[str, Scalar], runs: Sequence[Mapping[str, Any]], wanted: int) -> Trial:
    figures = [run["rounds"][-1]["evaluation"].get("seen") for run in runs]
    if len(runs) < wanted or None in figures:
        return Trial(settings, math.inf, {}, math.inf)
    received, rounds = (
        mean(_number(one[name]["mean"]) for one in figures if one)
        for name in ("zero_step_validation_loss", "k_step_validation_loss")
    )
    tables = [_adapted(run.get("adapting", []), received) for run in runs]
    shared = [budget for budget in tables[0] if all(budget in table for table in tables)]
    return Trial(settings, received, {budget: mean(table[budget] for table in tables) for budget in shared}, rounds)


def _adapted(tried: Sequence[Mapping[str, Any]], received: float) -> dict[Budget, float]:
    """Return by budget the loss of a run; the change is added where the same clients were scored before any step."""
    losses = {(one["rate"], one["steps"]): _number(one["loss"]) for one in tried}
    before = {rate: loss for (rate, steps), loss in losses.items() if not steps}
    changes = {(rate, steps): received - before[rate] for rate, steps in losses if rate in before}
    return {budget: _number(loss + changes.get(budget, 0.0)) for budget, loss in losses.items() if budget[1]}


def _number(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _entry(name: str, tried: Sequence[Trial]) -> str:
    best = min(tried, key=lambda trial: (trial.loss, json.dumps(dict(trial.settings))))
    adapting = bool(best.adapted) and best.budget is not None
    said_by = "after adapting" if adapting or (not best.adapted and best.rounds < best.as_received) else "as received"
    lines = [f"[{json.dumps(name)}]", f"set = {_inline(best.chosen())}", f'lower = "{said_by}"']
    return "\n".join([*lines, *(_trial_lines(name, one) for one in tried)]) + "\n\n"


def _trial_lines(name: str, trial: Trial) -> str:
    lines = [f"[[{json.dumps(name)}.tried]]", f"settings = {_inline(trial.settings)}"]
    lines += [f"as-received = {trial.as_received:.4f}", f"after-K-steps-of-rounds = {trial.rounds:.4f}"]
    for rate in dict.fromkeys(rate for rate, _ in trial.adapted):
        after = {str(steps): round(loss, 4) for (one, steps), loss in trial.adapted.items() if one == rate}
        lines.append(f'adapted."{rate}" = {_inline(after)}')
    return "\n".join(lines)


def _inline(values: Mapping[str, Scalar]) -> str:
    return "{ " + ", ".join(f"{json.dumps(name)} = {_value(value)}" for name, value in values.items()) + " }"


def _value(value: Scalar) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "inf"
    return json.dumps(value)
