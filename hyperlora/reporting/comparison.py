"""The page that compares several runs, and the panels that pair the clients of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from hyperlora.clock import clock
from hyperlora.reporting.figures import (
    ANCHOR,
    GROUPS,
    STEPS,
    comparison_figures,
    differences,
    gains,
    scores_by_client,
    summary_of,
    traffic_and_time,
)
from hyperlora.reporting.page import Page, Panel, Table
from hyperlora.reporting.panels import draw_accuracies, draw_gain
from hyperlora.reporting.run_files import RunFiles
from hyperlora.reporting.verdict import gain_interval

SUMMARY = (
    "run",
    "method",
    "seen, as received",
    "seen, after K",
    "unseen, as received",
    "unseen, after K",
    "MiB",
    "time",
)
PAIRED = ("clients", "adapter", "number", "mean gain (points)", "95 % interval", "better off", "equal", "worse off")
GAINS = ("run", "clients", "number", "mean gain (points)", "95 % interval")


def comparison_page(runs: Sequence[RunFiles]) -> Page:
    """Return the page that compares ``runs``."""
    figures = comparison_figures(runs)
    labels, differing = [run["label"] for run in figures["runs"]], list(differences(runs))
    return Page(
        title=f"Comparison: {', '.join(labels)}",
        subtitle=" / ".join(run.name for run in runs),
        tiles=[],
        notes=other_data_notes(figures),
        panels=[*_accuracy_panels(figures), *_gain_panel(runs, figures)],
        tables=[
            Table("Last evaluation", SUMMARY, list(summary_rows(figures)), "Mean over clients; traffic and wall time."),
            *_gain_table(runs, figures),
            Table("What differs in the configuration", ("key", *labels), differing, "" if differing else "Nothing."),
        ],
    )


def other_data_notes(figures: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each run that cannot be set against the base client by client."""
    return [
        f"The clients of {label} are not those of {figures['base']} ({', '.join(keys)} differ): their accuracies are "
        "of other data, and no client is set against itself."
        for label, keys in figures["other_data"].items()
    ]


def summary_rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield one row under ``SUMMARY`` for each run."""
    for run in figures["runs"]:
        accuracy = [
            f"{100 * run['accuracy'][group][column]['mean']:.1f} %" if group in run["accuracy"] else "-"
            for group in GROUPS
            for column in STEPS
        ]
        mib, wall = traffic_and_time(run)
        yield (run["label"], run["method"], *accuracy, f"{mib:.1f}", clock(wall))


def _accuracy_panels(figures: Mapping[str, Any]) -> Iterator[Panel]:
    for group in GROUPS:
        for column, words in STEPS.items():
            series = {run["label"]: run["accuracy_over_rounds"].get(f"{group} {column}") for run in figures["runs"]}
            lines = {label: points for label, points in series.items() if points}
            if lines:
                name = f"{group}-{column.replace('_', '-')}"
                caption = "Mean over clients of the accuracy on each client's own test data."
                yield Panel(f"{group.capitalize()} clients, {words}", draw_accuracies(lines, name), caption)


def _gain_panel(runs: Sequence[RunFiles], figures: Mapping[str, Any]) -> Iterator[Panel]:
    gain, rows, unseen = {}, {}, []
    for run, label in zip(runs, (run["label"] for run in figures["runs"]), strict=True):
        scores = scores_by_client(run.scores)
        for client, value in figures["gain_over_base"].get(label, {}).items():
            key = f"{label}/{client}"
            gain[key], rows[key] = value, label
            if not scores[client]["seen"]:
                unseen.append(key)
    if gain:
        yield Panel(
            f"What each client gains over {figures['base']}",
            draw_gain(gain, rows, unseen, "gain", figures["base"]),
            "Test accuracy as received, minus that of the same client in the base run; one point for each client.",
        )


def _gain_table(runs: Sequence[RunFiles], figures: Mapping[str, Any]) -> Iterator[Table]:
    rows = []
    for label, run in zip((one["label"] for one in figures["runs"]), runs, strict=True):
        gain, scores = figures["gain_over_base"].get(label, {}), scores_by_client(run.scores)
        for group in GROUPS:
            values = [gain[client] for client in gain if scores[client]["seen"] == (group == "seen")]
            if values:
                rows.append((label, group, str(len(values)), f"{100 * fmean(values):+.1f}", _interval(values)))
    if rows:
        caption = "As received, each client against itself; the interval is over clients, and each run is one seed."
        yield Table(f"Gain over {figures['base']}", GAINS, rows, caption)


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "one client"
    return " to ".join(f"{100 * bound:+.1f}" for bound in gain_interval(values))


def gain_by_domain(run: RunFiles, gain: Mapping[str, float], name: str, over: str) -> str:
    """Return the strips of points of a run's clients, a row for each domain."""
    scores = scores_by_client(run.scores)
    rows = {client: score["domain"] for client, score in scores.items()}
    return draw_gain(gain, rows, [client for client, score in scores.items() if not score["seen"]], name, over)


def paired_panels(run: RunFiles, figures: Mapping[str, Any]) -> Iterator[Panel]:
    """Yield a strip of points for the adapters as received and one for those after local steps."""
    over = str(figures["method"])
    for column, words in STEPS.items():
        yield Panel(
            f"What each client gains over {over}, {words}",
            gain_by_domain(run, figures["gain"][column], f"paired-{column.replace('_', '-')}", over),
            f"Test accuracy, {words}, minus that of the same client in the run {figures['against']}; one point for "
            "each client, by domain; hollow ones never train.",
        )


def paired_table(figures: Mapping[str, Any]) -> Table:
    """Return how many clients are better off, by group."""
    rows = [row for column, groups in figures["summary"].items() for row in _paired_rows(groups, column)]
    return Table(f"Against {figures['method']} ({figures['against']})", PAIRED, rows, "Each client against itself.")


def anchor_table(run: RunFiles) -> Table | None:
    """Return what a personal adapter is worth over the anchor, by group; None where the anchor was not scored."""
    own, shared = scores_by_client(run.scores), scores_by_client(run.scores, ANCHOR)
    rows = list(_paired_rows(summary_of(gains(own, shared), own), "zero_step"))
    caption = (
        "The adapter made for a client against the anchor that all share, each client against itself. The interval is "
        "over clients (bootstrap): where it holds 0, the run does not tell them apart. It is of one run with one seed."
    )
    return Table("What a personal adapter is worth, in figures", PAIRED, rows, caption) if rows else None


def _paired_rows(groups: Mapping[str, Mapping[str, Any]], column: str) -> Iterator[tuple[str, ...]]:
    """Yield one row under ``PAIRED`` for each group."""
    for group, counts in groups.items():
        yield (
            group,
            STEPS[column],
            str(counts["clients"]),
            f"{100 * counts['mean']:+.1f}",
            _interval(counts["gains"]),
            *(str(counts[name]) for name in ("better", "equal", "worse")),
        )
