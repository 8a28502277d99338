"""The numbers of reports and comparisons: plain lists and dicts, which ``--format json`` prints and the panels draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperlora.reporting.run_files import RunFiles, RunFilesError

GROUPS = ("seen", "unseen")
STEPS = {"zero_step": "as received", "k_step": "after local steps"}
ANCHOR = "anchor"
BASE_METHOD = "fedit"
CLIPPED = "cut short: it moved far further than the cohort"
ELAPSED = "elapsed"
MIB = 2**20


def figures_of(run: RunFiles) -> dict[str, Any]:
    """Return the figures of a run; accuracies are shares, sizes bytes, times seconds."""
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
        "seconds": {name: value for name, value in totals(run.records, "seconds").items() if name != ELAPSED},
        "elapsed": elapsed(run.records),
        "failures": failures(run.records),
        "left_out": run.left_out,
    }


def last_accuracy(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean, standard deviation and worst tenth of the last evaluation, by group and number of steps."""
    last: Mapping[str, Any] = next((record["evaluation"] for record in reversed(records) if record["evaluation"]), {})
    return {group: {column: last[group][column] for column in STEPS} for group in GROUPS if group in last}


def accuracy_over_rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Return for ``<group> <column>`` the round, mean and standard deviation over clients of every evaluation."""
    series: dict[str, list[dict[str, float]]] = {}
    for record in records:
        for group in GROUPS:
            for column in STEPS if group in record["evaluation"] else ():
                spread = record["evaluation"][group][column]
                point = {"round": record["server_round"], "mean": spread["mean"], "std": spread["std"]}
                series.setdefault(f"{group} {column}", []).append(point)
    return series


def scores_by_client(scores: Sequence[Mapping[str, Any]], track: str = "start") -> dict[str, Mapping[str, Any]]:
    """Return the scores of one track by client-id."""
    return {score["client_id"]: score for score in scores if score["track"] == track}


def gains(
    scores: Mapping[str, Mapping[str, Any]], baseline: Mapping[str, Mapping[str, Any]], column: str = "zero_step"
) -> dict[str, float]:
    """Return for every client in both the accuracy in ``scores`` minus that in ``baseline``."""
    return {name: scores[name][column] - baseline[name][column] for name in sorted(scores) if name in baseline}


def totals(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return the sum over rounds of the values under ``key``, by name."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record[key])
    return dict(total)


def elapsed(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds from the start of a run to its last round, as its console says them.

    For a run of an older version it is the time of its rounds, without its start.
    """
    if ELAPSED in records[-1]["seconds"]:
        return float(records[-1]["seconds"][ELAPSED])
    return sum(value for name, value in totals(records, "seconds").items() if name != "training")


def traffic_and_time(figures: Mapping[str, Any]) -> tuple[float, float]:
    """Return MiB sent and received, and the seconds that the run took."""
    return sum(figures["bytes"].values()) / MIB, figures["elapsed"]


def failures(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each reason why contributions were left out or cut short, most frequent first."""
    found: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for record in records:
        for who, reason in record["failures"].items():
            phase, _, client = who.partition(" ")
            found.setdefault((phase, reason), []).append((client, record["server_round"]))
        for kind, reason in record.get("missing_sums", {}).items():
            found.setdefault((f"sum of {kind}", reason), []).append(("", record["server_round"]))
        for client in record.get("clipped", {}):
            found.setdefault(("train", CLIPPED), []).append((client, record["server_round"]))
    return [
        {
            "phase": phase,
            "reason": reason,
            "count": len(places),
            "clients": sorted({client for client, _ in places if client}),
            "rounds": sorted({server_round for _, server_round in places}),
        }
        for (phase, reason), places in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def paired_figures(run: RunFiles, against: RunFiles) -> dict[str, Any]:
    """Return what each client of ``run`` gains over itself in ``against``.

    Returns:
        ``gain`` (column -> client-id -> accuracy gained, a share) and ``summary`` (column -> group -> counts).

    Raises:
        RunFilesError: the clients of the two runs do not hold the same data, or one run has no evaluation.
    """
    _check_same_clients(run, against)
    scores, baseline = scores_by_client(run.scores), scores_by_client(against.scores)
    gain = {column: gains(scores, baseline, column) for column in STEPS}
    return {
        "against": against.name,
        "method": against.config.method,
        "gain": gain,
        "summary": {column: summary_of(gain[column], scores) for column in STEPS},
    }


def data_differences(run: RunFiles, other: RunFiles) -> list[str]:
    """Return the configuration keys in which the data of two runs and their division over clients differ."""
    here, there = run.config.public(), other.config.public()
    keys = [name for name in here if name.startswith("data.") or name == "seed"]
    return [name for name in keys if here[name] != there[name]]


def _check_same_clients(run: RunFiles, against: RunFiles) -> None:
    differing = data_differences(run, against)
    if differing:
        raise RunFilesError(
            f"the clients of '{run.name}' and '{against.name}' do not hold the same data, so they cannot be paired: "
            f"{', '.join(differing)} differ"
        )
    for each in (run, against):
        if not each.scores:
            raise RunFilesError(f"the run in '{each.path}' has not ended, so its clients have no scores to pair")


def grouped(values: Mapping[str, float], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return a value of each client by group, ``seen`` first; a group without clients is left out."""
    groups = {group: [values[name] for name in values if scores[name]["seen"] == (group == "seen")] for group in GROUPS}
    return {group: found for group, found in groups.items() if found}


def summary_of(gain: Mapping[str, float], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each group how many clients gain, how many lose, and the mean."""
    return {
        group: {
            "clients": len(values),
            "mean": sum(values) / len(values),
            "better": sum(value > 0 for value in values),
            "equal": sum(value == 0 for value in values),
            "worse": sum(value < 0 for value in values),
            "gains": values,
        }
        for group, values in grouped(gain, scores).items()
    }


def comparison_figures(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return the figures of all runs, and what the clients of each gain over those of the base run.

    The base is the first FedIT run, or the first run where there is none. Under ``other_data`` are the runs whose
    clients are not those of the base, with the keys that say so; what these gain is not told.
    """
    labels = labels_of(runs)
    base = next((index for index, run in enumerate(runs) if run.config.method == BASE_METHOD), 0)
    scores = [scores_by_client(run.scores) for run in runs]
    other = {label: data_differences(run, runs[base]) for label, run in zip(labels, runs, strict=True)}
    return {
        "base": labels[base],
        "other_data": {label: keys for label, keys in other.items() if keys},
        "runs": [{"label": label, **figures_of(run)} for label, run in zip(labels, runs, strict=True)],
        "gain_over_base": {
            label: gains(scores[index], scores[base])
            for index, label in enumerate(labels)
            if index != base and not other[label]
        },
    }


def labels_of(runs: Sequence[RunFiles]) -> list[str]:
    """Return a name for each run: that of its directory, with the one above or a number where that is not enough."""
    names = [run.name for run in runs]
    longer = [f"{run.path.parent.name}/{run.name}" for run in runs]
    numbered = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return next(found for found in (names, longer, numbered) if len(set(found)) == len(found))


def differences(runs: Sequence[RunFiles]) -> Iterator[tuple[str, ...]]:
    """Yield each configuration key in which the runs differ, with the value of every run."""
    flat = [run.config.flat() for run in runs]
    for key in flat[0]:
        values = [str(each[key]) for each in flat]
        if len(set(values)) > 1 and not key.startswith("run."):
            yield (key, *values)
