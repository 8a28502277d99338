"""The tracks beside personal accuracy: the global model by domain, and what it takes to reach a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.table import cell, markdown

Results = Mapping[str, Sequence[Mapping[str, Any]]]
NO_GLOBAL_MODEL = (
    "local",
    "fedsa-lora",
    "feddpa",
    "potara",
    "pfedhn-lora",
    "clustered",
    "fedper",
    "ditto",
    "hilora",
    "lda",
)
WINDOW = 3
TARGET = ["rounds", "local steps", "MiB", "server s"]


def domain_table(results: Results, order: Sequence[str]) -> str:
    """Return a markdown table: accuracy of the one global model on the test samples of each domain, in percent.

    For hyperlora that is its anchor. Methods whose clients only have adapters of their own are not in it.
    """
    scores = {}
    for name in order:
        runs = [run for run in results.get(name, []) if run["config"]["method"] not in NO_GLOBAL_MODEL]
        if found := [one for one in map(_by_domain, runs) if one]:
            scores[name] = found
    columns = sorted({domain for found in scores.values() for one in found for domain in one})
    rows = {
        name: [
            *(cell([100 * one[domain] for one in found if domain in one]) for domain in columns),
            cell([100 * mean(one.values()) for one in found]),
        ]
        for name, found in scores.items()
    }
    return markdown("global model", [*columns, "mean"], rows) if rows else ""


def _by_domain(run: Mapping[str, Any]) -> dict[str, float]:
    tracks = {client["track"] for client in run["clients"]}
    wanted = "anchor" if "anchor" in tracks else "start"
    right: dict[str, float] = {}
    count: dict[str, int] = {}
    for client in run["clients"]:
        if client["track"] == wanted:
            domain = client["domain"]
            right[domain] = right.get(domain, 0.0) + client["zero_step"] * client["num_test"]
            count[domain] = count.get(domain, 0) + client["num_test"]
    return {domain: right[domain] / count[domain] for domain in right}


def target_table(results: Results, order: Sequence[str], reference: str) -> str:
    """Return a markdown table: rounds, local steps, MiB and server seconds until clients as received
    reach the reference's last level.

    Measured on the validation shares of the clients of a round, mean over ``WINDOW`` rounds; the level is that of the
    reference's last rounds, by seed. "-" where a run never reaches it.
    """
    level = {run["seed"]: _smoothed(run)[-1] for run in results.get(reference, []) if _smoothed(run)}
    rows = {}
    for name in order:
        runs = [run for run in results.get(name, []) if run["seed"] in level and _smoothed(run)]
        reached = [_cost_until(run, level[run["seed"]]) for run in runs]
        if runs:
            known = [one for one in reached if one is not None]
            whole = known and len(known) == len(runs)
            rows[name] = [cell(list(column)) for column in zip(*known, strict=True)] if whole else ["-"] * len(TARGET)
    return markdown(f"to {reference}'s last level", TARGET, rows) if rows else ""


def _smoothed(run: Mapping[str, Any]) -> list[float]:
    """Return by round the mean validation accuracy as received over the last ``WINDOW`` rounds."""
    levels = [one["training"]["start_accuracy"]["mean"] for one in run["rounds"] if "start_accuracy" in one["training"]]
    return [mean(levels[max(0, end - WINDOW) : end]) for end in range(1, len(levels) + 1)]


def _cost_until(run: Mapping[str, Any], level: float) -> tuple[float, ...] | None:
    """Return what ``TARGET`` names until the level is reached, steps and bytes of all clients; None where it is not."""
    for index, reached in enumerate(_smoothed(run)):
        if reached >= level and index >= WINDOW - 1:
            made = run["rounds"][:index]
            steps = sum(len(one["cohort"]) for one in made) * run["config"]["train.local-steps"]
            moved = sum(one["bytes"]["train_down"] + one["bytes"]["train_up"] for one in made)
            server = sum(one["seconds"]["aggregating"] for one in made)
            return float(index), float(steps), moved / 2**20, server
    return None
