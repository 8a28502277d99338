"""The comparison of several runs: their figures beside each other, as numbers and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperlora.reporting.draw_accuracy import draw_accuracies
from hyperlora.reporting.draw_costs import MIB
from hyperlora.reporting.draw_gain import draw_gain
from hyperlora.reporting.figures import GROUPS, figures_of, gains, scores_by_client
from hyperlora.reporting.page import Page, Panel, Table
from hyperlora.reporting.run_files import RunFiles

BASE_METHOD = "fedit"
SUMMARY = ("run", "seen, as received", "seen, after K", "unseen, as received", "unseen, after K", "MiB", "seconds")


def comparison_figures(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return the figures of all runs, and for each what its clients gain over those of the base run."""
    labels, base = labels_of(runs), base_of(runs)
    reference = scores_by_client(base.scores)
    return {
        "base": labels[runs.index(base)],
        "runs": [{"label": label, **figures_of(run)} for label, run in zip(labels, runs, strict=True)],
        "gain_over_base": {
            label: gains(scores_by_client(run.scores), reference)
            for label, run in zip(labels, runs, strict=True)
            if run is not base
        },
    }


def base_of(runs: Sequence[RunFiles]) -> RunFiles:
    """Return the first FedIT run, or the first run where there is none."""
    return next((run for run in runs if run.config.method == BASE_METHOD), runs[0])


def labels_of(runs: Sequence[RunFiles]) -> list[str]:
    """Return a short name for each run: its method, with seed and number where that is not enough."""
    plain = [run.config.method for run in runs]
    seeded = [f"{run.config.method}, seed {run.config.seed}" for run in runs]
    numbered = [f"{one} ({index})" for index, one in enumerate(seeded, start=1)]
    return next(names for names in (plain, seeded, numbered) if len(set(names)) == len(names))


def summary_rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield one row under ``SUMMARY`` for each run."""
    for one in figures["runs"]:
        accuracy = [
            f"{100 * one['accuracy'][group][column]['mean']:.1f} %" if group in one["accuracy"] else "-"
            for group in GROUPS
            for column in ("zero_step", "k_step")
        ]
        wall = sum(value for name, value in one["seconds"].items() if name != "training")
        yield (one["label"], *accuracy, f"{sum(one['bytes'].values()) / MIB:.1f}", f"{wall:.0f}")


def comparison_page(runs: Sequence[RunFiles]) -> Page:
    """Return the page that shows ``runs`` beside each other."""
    figures = comparison_figures(runs)
    differing = list(_differences(runs, [one["label"] for one in figures["runs"]]))
    labels = [one["label"] for one in figures["runs"]]
    return Page(
        title=f"Comparison: {', '.join(labels)}",
        subtitle=" / ".join(run.name for run in runs),
        tiles=[],
        panels=list(_panels(runs, figures)),
        tables=[
            Table("Last evaluation", SUMMARY, list(summary_rows(figures)), "Mean over clients; traffic and wall time."),
            Table("What differs in the configuration", ("key", *labels), differing, "" if differing else "Nothing."),
        ],
    )


def _panels(runs: Sequence[RunFiles], figures: Mapping[str, Any]) -> Iterator[Panel]:
    for group in GROUPS:
        for column, words in (("zero_step", "as received"), ("k_step", "after local steps")):
            key = f"{group} {column}"
            lines = {
                one["label"]: one["accuracy_over_rounds"][key]
                for one in figures["runs"]
                if key in one["accuracy_over_rounds"]
            }
            if lines:
                name = key.replace(" ", "-").replace("_", "-")
                caption = "Mean over clients of the accuracy on each client's own test data."
                yield Panel(f"{group.capitalize()} clients, {words}", draw_accuracies(lines, name), caption)
    gain, rows, unseen = _gain_of_clients(runs, figures)
    if gain:
        yield Panel(
            f"What each client gains over {figures['base']}",
            draw_gain(gain, rows, unseen, "gain", figures["base"]),
            "Test accuracy as received, minus that of the same client in the base run; one point for each client.",
        )


def _gain_of_clients(
    runs: Sequence[RunFiles], figures: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, str], list[str]]:
    """Return the gain of every client of every run, the run's label for each, and who is unseen."""
    gain, rows, unseen = {}, {}, []
    for run, one in zip(runs, figures["runs"], strict=True):
        scores = scores_by_client(run.scores)
        for client, value in figures["gain_over_base"].get(one["label"], {}).items():
            key = f"{one['label']}/{client}"
            gain[key], rows[key] = value, one["label"]
            if not scores[client]["seen"]:
                unseen.append(key)
    return gain, rows, unseen


def _differences(runs: Sequence[RunFiles], labels: Sequence[str]) -> Iterator[tuple[str, ...]]:
    flat = [run.config.flat() for run in runs]
    for key in flat[0]:
        values = [str(one[key]) for one in flat]
        if len(set(values)) > 1 and not key.startswith("run."):
            yield (key, *values)
