"""``python -m benchmarks.sums``: what does it cost if the server is told nothing but sums over clients?

A run of HyperLoRA is made as ever (``open``). Another is made in this process in which the server's part reads nothing
of a client but sums: the anchor is moved by sums of one factor in turn, clusters are found by k-means whose steps
are sums, class statistics reach the server as sums over clusters of at least five clients, and every client makes its
head for itself (:mod:`models.sums`). Cohorts, batches and local steps are those of the open run. The sums are taken
here without masks: this measures accuracy, not protection. Development seeds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from benchmarks.amortisation import last_state
from benchmarks.bootstrap import paired_difference
from benchmarks.head_parts import finished_run
from benchmarks.result import MACHINE_KEYS
from benchmarks.study import SEEDS, Overrides, Seeds, Study, Target, given
from benchmarks.suite import HERE
from benchmarks.sums_only import MOST, Clients, Evaluation, anchor_from_sums, one_factor
from benchmarks.table import cell, markdown
from client_app.runtime import open_runtime
from hyperlora.cli.settings import flatten, read_toml
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.storage.run_names import EVALUATION
from models.sums.shared_factor import STEP

RESULT = HERE / "results" / "sums.json"
SETTINGS: Mapping[str, tuple[str, Mapping[str, Scalar]]] = {
    "feature shift": ("pacs", {"data.dirichlet-alpha": 0.0}),
    "Dirichlet 0.5": ("pacs", {"data.dirichlet-alpha": 0.5}),
    "Dirichlet 0.1": ("pacs", {"data.dirichlet-alpha": 0.1}),
    "120 clients": ("pacs_many", {"data.dirichlet-alpha": 0.5}),
    "CLINC150": ("clinc", {}),
    "CLINC150, head from data": ("clinc", {"lora.head-start": "classes"}),
}
OPEN, SUMS, SAME_ANCHOR, ONE_GROUP, AS_CLIENTS, ANCHOR, FITTED = (
    "open",
    "sums",
    "heads from sums, anchor of the open run",
    "sums, one cluster of all",
    "sums, without the second sum of deviations",
    "the anchor's head",
    "the anchor's head, fitted to a client's own samples",
)
ROWS = (OPEN, ANCHOR, FITTED, SAME_ANCHOR, SUMS, AS_CLIENTS, ONE_GROUP)
GROUPS = ("seen", "unseen")


def measured(config: RunConfig, *, controls: bool = True) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return by row the test accuracies of all clients as received, and who of them trains.

    Args:
        config: of the run.
        controls: whether the last two rows are made.
    """
    with tempfile.TemporaryDirectory(prefix="hyperlora-sums-") as scratch:
        run = finished_run(config, Path(scratch) / "run")
        state, scores = last_state(run), json.loads((run.path / EVALUATION).read_text(encoding="utf-8"))
        clients = Clients(open_runtime(config), run.require_clients().cards)
    rows = {OPEN: {one["client_id"]: one["zero_step"] for one in scores if one["track"] == START_TRACK}}
    there = Evaluation.of(clients, state.served_anchor)
    rows[ANCHOR] = there.accuracies(there.plain())
    rows[FITTED] = there.accuracies(there.fitted())
    rows[SAME_ANCHOR] = there.accuracies(there.served(there.published(MOST)))
    own = Evaluation.of(clients, anchor_from_sums(clients, one_factor(STEP)))
    rows[SUMS] = own.accuracies(own.served(own.published(MOST)))
    if not controls:
        return rows, sorted(clients.training)
    rows[AS_CLIENTS] = own.accuracies(own.served(own.published(MOST, second=False)))
    rows[ONE_GROUP] = own.accuracies(own.served(own.published(1)))
    return rows, sorted(clients.training)


def configured(setting: str, seed: int, overrides: Mapping[str, Scalar]) -> RunConfig:
    """Return the configuration of a run."""
    preset, values = SETTINGS[setting]
    path = HERE / "presets" / f"{preset}.toml"
    base: dict[str, Scalar] = {"method": "hyperlora", "prior.use": "on", "train.adapt-steps": 0, "seed": seed}
    return RunConfig.parse(
        {**flatten(read_toml(path), path), **base, "federation.evaluate-steps": "", **values, **overrides}
    )


def main(
    setting: Annotated[list[str] | None, typer.Option(help="settings to run; all by default")] = None,
    seed: Seeds = None,
    override: Overrides = None,
    to: Target = RESULT,
    controls: Annotated[bool, typer.Option(help="make the rows without the second sum and of one cluster")] = True,
) -> None:
    """Make the runs that are missing, seeds outermost, and print the tables."""
    study, values = Study(to), given(override)
    points = product(seed or SEEDS, setting or SETTINGS)
    for point in study.missing({"setting": name, "seed": one} for one, name in points):
        config = configured(point["setting"], point["seed"], values)
        rows, seen = measured(config, controls=controls)
        study.add(point, {"config": described(config), "rows": rows, "seen": seen})
    study.say(sums_table(study.runs))


def described(config: RunConfig) -> dict[str, Any]:
    """Return the settings that a run is told apart by."""
    return {key: value for key, value in config.flat().items() if key not in MACHINE_KEYS}


def sums_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return markdown tables: accuracies as received, and differences to the open run.

    Args:
        runs: of :func:`main`'s file.
    """
    found = {name: [run for run in runs if run["setting"] == name] for name in SETTINGS}
    found = {name: own for name, own in found.items() if own}
    columns = [f"{name}, {group}" for name in found for group in GROUPS]
    names = [name for name in ROWS if any(name in run["rows"] for run in runs)]
    means = {row: [_mean(own, row, group) for own in found.values() for group in GROUPS] for row in names}
    apart = {row: [_change(own, row, group) for own in found.values() for group in GROUPS] for row in names[1:]}
    seeds = "; ".join(f"{name}: {', '.join(str(run['seed']) for run in own)}" for name, own in found.items())
    note = (
        f"Percent and points, as received; seeds {seeds}; 95 % intervals of a bootstrap over seeds and clients; "
        f"made at commit {', '.join(sorted({run['commit'] for run in runs}))}."
    )
    return "\n\n".join([markdown("server", columns, means), markdown(f"minus {OPEN}", columns, apart), note])


def _mean(runs: Sequence[Mapping[str, Any]], row: str, group: str) -> str:
    own = _with_row(runs, row)
    return mean_of(own, group) + _fewer(own, runs) if own else ""


def _change(runs: Sequence[Mapping[str, Any]], row: str, group: str) -> str:
    own = _with_row(runs, row)
    return difference(own, _with_row([run for run in runs if row in run["rows"]], OPEN), group) if own else ""


def _with_row(runs: Sequence[Mapping[str, Any]], row: str) -> list[dict[str, Any]]:
    return [{**run, "row": run["rows"][row]} for run in runs if row in run["rows"]]


def _fewer(own: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]) -> str:
    """Return of which seeds a cell is where it is not of all."""
    return "" if len(own) == len(every) else f" (seed {', '.join(str(run['seed']) for run in own)})"


def mean_of(runs: Sequence[Mapping[str, Any]], group: str) -> str:
    """Return the mean accuracy of a group of clients over runs that have a ``row`` of accuracies, and ``seen``."""
    return cell([100 * fmean(one["zero_step"] for one in _clients(run, group)) for run in runs])


def difference(runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], group: str) -> str:
    """Return the paired difference of a group's accuracies, with its interval."""
    own, theirs = ([{"seed": run["seed"], "clients": _clients(run, group)} for run in some] for some in (runs, others))
    return str(paired_difference(own, theirs, group, ("zero_step", "zero_step")) or "")


def _clients(run: Mapping[str, Any], group: str) -> list[dict[str, Any]]:
    """Return the clients of a group with their accuracies."""
    chosen = [name for name in run["row"] if (name in run["seen"]) == (group == "seen")]
    return [
        {"client_id": name, "seen": group == "seen", "track": START_TRACK, "zero_step": run["row"][name]}
        for name in chosen
    ]


if __name__ == "__main__":
    typer.run(main)
