"""The numbers of a run's report: plain lists and dicts, which `--format json` prints and the panels draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hyperlora.reporting.run_files import RunFiles

GROUPS = ("seen", "unseen")
COLUMNS = ("zero_step", "k_step")
START = "start"
ANCHOR = "anchor"


def figures_of(run: RunFiles) -> dict[str, Any]:
    """Return what a script wants to know of a run; accuracies are shares, sizes bytes, times seconds."""
    return {
        "run": run.name,
        "method": run.config.method,
        "seed": run.config.seed,
        "rounds": len(run.records),
        "rounds_asked_for": run.config.federation.rounds,
        "accuracy": last_accuracy(run.records),
        "accuracy_over_rounds": accuracy_over_rounds(run.records),
        "gain_over_anchor": gains(scores_by_client(run.scores), scores_by_client(run.scores, ANCHOR)),
        "bytes": totals(run.records, "bytes"),
        "seconds": totals(run.records, "seconds"),
        "failures": failures(run.records),
        "left_out": run.left_out,
    }


def last_accuracy(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean, standard deviation and worst tenth of the last evaluation, by group and number of steps."""
    evaluated = [one["evaluation"] for one in records if one["evaluation"]]
    if not evaluated:
        return {}
    last = evaluated[-1]
    return {group: {column: last[group][column] for column in COLUMNS} for group in GROUPS if group in last}


def accuracy_over_rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Return for ``<group> <column>`` the round, mean and standard deviation over clients of every evaluation."""
    series: dict[str, list[dict[str, float]]] = {}
    for record in records:
        for group in GROUPS:
            for column in COLUMNS if group in record["evaluation"] else ():
                spread = record["evaluation"][group][column]
                point = {"round": record["server_round"], "mean": spread["mean"], "std": spread["std"]}
                series.setdefault(f"{group} {column}", []).append(point)
    return series


def scores_by_client(scores: Sequence[Mapping[str, Any]], track: str = START) -> dict[str, Mapping[str, Any]]:
    """Return the scores of one track by client-id."""
    return {one["client_id"]: one for one in scores if one["track"] == track}


def gains(
    ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]], column: str = "zero_step"
) -> dict[str, float]:
    """Return for every client of both the accuracy of the first minus that of the second."""
    return {name: ours[name][column] - theirs[name][column] for name in sorted(ours) if name in theirs}


def totals(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return the sum over rounds of what stands by name under ``key``."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record[key])
    return dict(total)


CLIPPED = "cut short: it moved far further than the cohort"


def failures(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each reason why contributions were left out or cut short, most frequent first."""
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for record in records:
        for who, reason in record["failures"].items():
            phase, _, client = who.partition(" ")
            found.setdefault((phase, reason), []).append((client, record["server_round"]))
        for client in record.get("clipped", {}):
            found.setdefault(("train", CLIPPED), []).append((client, record["server_round"]))
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [
        {
            "phase": phase,
            "reason": reason,
            "count": len(places),
            "clients": sorted({client for client, _ in places if client}),
            "rounds": sorted({server_round for _, server_round in places}),
        }
        for (phase, reason), places in ordered
    ]
