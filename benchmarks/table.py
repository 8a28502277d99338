"""Markdown tables made from the results of a suite and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

COLUMNS = {
    "seen, as received": ("seen", "zero_step", "mean"),
    "seen, after K steps": ("seen", "k_step", "mean"),
    "seen, worst tenth": ("seen", "k_step", "worst_tenth"),
    "seen, better by validation": ("seen", "chosen", "mean"),
    "unseen, as received": ("unseen", "zero_step", "mean"),
    "unseen, after K steps": ("unseen", "k_step", "mean"),
}

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def markdown(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a markdown table with ``corner`` over the names of the rows."""
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines)


def cell(values: Sequence[float], sign: str = "") -> str:
    """Return the mean, with the standard deviation where there are several values; ``sign`` is a format sign.

    Without any value the cell is empty.
    """
    if not values:
        return ""
    middle = f"{mean(values):{sign}.1f}"
    return f"{middle} ± {stdev(values):.1f}" if len(values) > 1 else middle


def accuracy_table(results: Results, order: Sequence[str]) -> str:
    """Return a markdown table: accuracy in percent after the last round, mean and standard deviation over seeds."""
    rows = {
        name: [cell([_value(run, path) for run in scored(results[name], path[0])]) for path in COLUMNS.values()]
        for name in order
        if name in results
    }
    return markdown("method", column_names(results), rows) + _footnote(results, order)


def adapted(results: Results) -> str:
    """Return what a client that made local steps is called: "adapted" where some row has a budget of use of its own."""
    configs = [run.get("config", {}) for runs in results.values() for run in runs]
    own = any(one.get("train.adapt-steps", -1) >= 0 or one.get("train.adapt-learning-rate") for one in configs)
    return "adapted" if own else "after K steps"


def column_names(results: Results) -> list[str]:
    """Return the headings of ``COLUMNS`` as they are for these runs."""
    return [name.replace("after K steps", adapted(results)) for name in COLUMNS]


def paired_table(results: Results, order: Sequence[str], reference: str) -> str:
    """Return a markdown table of differences to ``reference`` in points, paired by seed: mean and deviation."""
    control = {run["seed"]: run for run in results.get(reference, [])}
    rows = {}
    for name in order:
        pairs = [(run, control[run["seed"]]) for run in results.get(name, []) if run["seed"] in control]
        if name != reference and pairs:
            rows[name] = [_difference(pairs, path) for path in COLUMNS.values()]
    return markdown(f"minus {reference}", column_names(results), rows)


def scored(runs: Sequence[Mapping[str, Any]], group: str) -> list[Mapping[str, Any]]:
    """Return the runs whose last evaluation has clients of a group (seen or unseen)."""
    return [run for run in runs if group in run["rounds"][-1]["evaluation"]]


def _difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], path: tuple[str, str, str]) -> str:
    both = [(a, b) for a, b in pairs if len(scored([a, b], path[0])) == 2]
    return cell([_value(a, path) - _value(b, path) for a, b in both], "+")


def side_by_side(suites: Mapping[str, Results], order: Sequence[str]) -> str:
    """Return a markdown table of several suites: as received / adapted, means over seeds in percent."""
    columns = [f"{title}, {group}" for title in suites for group in ("seen", "unseen")]
    rows = {
        name: [_pair(results.get(name, []), group) for results in suites.values() for group in ("seen", "unseen")]
        for name in order
        if any(name in results for results in suites.values())
    }
    every = {title: [run for runs in results.values() for run in runs] for title, results in suites.items()}
    return markdown(f"as received / {adapted(every)}", columns, rows)


def _pair(runs: Sequence[Mapping[str, Any]], group: str) -> str:
    paths, runs = [(group, column, "mean") for column in ("zero_step", "k_step")], scored(runs, group)
    return " / ".join(f"{mean(_value(run, path) for run in runs):.1f}" for path in paths) if runs else ""


def steps_table(results: Results, order: Sequence[str]) -> str:
    """Return a markdown table: accuracy of seen and unseen clients by local steps after the last round."""
    curves = {
        f"{name}, {group}": [run["rounds"][-1]["evaluation"][group]["by_steps"] for run in scored(results[name], group)]
        for name in order
        for group in ("seen", "unseen")
        if scored(results.get(name, []), group)
    }
    columns = sorted({steps for runs in curves.values() for run in runs for steps in run}, key=int)
    rows = {label: [_mean_cell(runs, steps) for steps in columns] for label, runs in curves.items()}
    return markdown("local steps", columns, rows)


def _mean_cell(runs: Sequence[Mapping[str, float]], steps: str) -> str:
    """Return the cell of one number of steps over the runs that were scored after it."""
    return cell([100 * run[steps] for run in runs if steps in run])


def parts_table(results: Results, order: Sequence[str]) -> str:
    """Return a markdown table: accuracy as received of whole starts, of the generator and of the anchor alone."""
    columns = [f"{group}{part}" for group in ("seen", "unseen") for part in ("", " generator", " anchor")]
    rows = {}
    for name in order:
        found = [run["rounds"][-1]["evaluation"] for run in results.get(name, [])]
        if found and "seen anchor" in found[0]:
            rows[name] = [
                cell([100 * one[column]["zero_step"]["mean"] for one in found]) if column in found[0] else ""
                for column in columns
            ]
    return markdown("as received", columns, rows) if rows else ""


def cost_table(results: Results, order: Sequence[str]) -> str:
    """Return a markdown table: server seconds and training seconds per round, KiB per client and round."""
    columns = ["server s", "training s, all clients", "KiB down", "KiB up"]
    rows = {
        name: [f"{mean(cost):.2f}" for cost in zip(*map(_costs, results[name]), strict=True)]
        for name in order
        if name in results and results[name][0]["rounds"][0]["cohort"]
    }
    return markdown("per round", columns, rows)


def _costs(run: Mapping[str, Any]) -> tuple[float, float, float, float]:
    rounds = run["rounds"]
    clients = sum(len(one["cohort"]) for one in rounds)
    moved = [sum(one["bytes"][f"train_{way}"] for one in rounds) / clients / 1024 for way in ("down", "up")]
    unevaluated = [one for one in rounds if not one["evaluation"]] or rounds
    server = mean(one["seconds"]["aggregating"] for one in unevaluated)
    return server, mean(one["seconds"].get("training", 0.0) for one in rounds), moved[0], moved[1]


def _footnote(results: Results, order: Sequence[str]) -> str:
    runs = [run for name in order for run in results.get(name, [])]
    seeds = sorted({run["seed"] for run in runs})
    commits = sorted({run["commit"] for run in runs})
    return (
        f"\n\nPercent, after the last round; {len(seeds)} seed(s) {_listed(seeds)}{_fewer_seeds(results, order, seeds)}"
        f"{', mean ± standard deviation' if len(seeds) > 1 else ''}; made at commit {', '.join(commits)}."
    )


def _fewer_seeds(results: Results, order: Sequence[str], seeds: Sequence[int]) -> str:
    """Return which rows have which other seeds than all rows together; empty where all have the same."""
    rows: dict[tuple[int, ...], list[str]] = {}
    for name in order:
        rows.setdefault(tuple(sorted({run["seed"] for run in results.get(name, [])})), []).append(name)
    told = [f"{_listed(own)} in {'; '.join(names)}" for own, names in rows.items() if own not in ((), tuple(seeds))]
    return f" ({', '.join(told)})" if told else ""


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _value(run: Mapping[str, Any], path: tuple[str, str, str]) -> float:
    group, column, figure = path
    return 100 * float(run["rounds"][-1]["evaluation"][group][column][figure])
