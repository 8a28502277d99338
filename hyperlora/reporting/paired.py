"""One run against another, client by client: what each client of the first gains over itself in the second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hyperlora.reporting.draw_gain import draw_gain
from hyperlora.reporting.figures import COLUMNS, gains, scores_by_client
from hyperlora.reporting.page import Panel, Table
from hyperlora.reporting.run_files import RunFiles, RunFilesError

STEPS = {"zero_step": "as received", "k_step": "after local steps"}
SUMMARY = ("clients", "", "number", "mean gain (points)", "better off", "equal", "worse off")


def paired_figures(run: RunFiles, against: RunFiles) -> dict[str, Any]:
    """Return ``gain`` (column -> client-id -> accuracy gained, a share) and ``summary`` (column -> group -> counts).

    Raises:
        RunFilesError: the clients of the two runs do not hold the same data, or one run has no evaluation.
    """
    _check_same_clients(run, against)
    ours, theirs = scores_by_client(run.scores), scores_by_client(against.scores)
    gain = {column: gains(ours, theirs, column) for column in COLUMNS}
    return {
        "against": against.name,
        "method": against.config.method,
        "gain": gain,
        "summary": {column: _summary(gain[column], ours) for column in COLUMNS},
    }


def paired_panels(run: RunFiles, figures: Mapping[str, Any]) -> Iterator[Panel]:
    """Yield a strip of points for the adapters as received and one for those after local steps."""
    scores, over = scores_by_client(run.scores), str(figures["method"])
    for column, words in STEPS.items():
        yield Panel(
            f"What each client gains over {over}, {words}",
            draw_gain(
                figures["gain"][column],
                {name: one["domain"] for name, one in scores.items()},
                [name for name, one in scores.items() if not one["seen"]],
                f"paired-{column.replace('_', '-')}",
                over,
            ),
            f"Test accuracy, {words}, minus that of the same client in the run {figures['against']}; one point for "
            "each client, by domain; hollow ones never train.",
        )


def paired_table(figures: Mapping[str, Any]) -> Table:
    """Return how many clients are better off, by group."""
    rows = [
        (
            group,
            STEPS[column],
            str(one["clients"]),
            f"{100 * one['mean']:+.1f}",
            *(str(one[name]) for name in ("better", "equal", "worse")),
        )
        for column, groups in figures["summary"].items()
        for group, one in groups.items()
    ]
    return Table(f"Against {figures['method']} ({figures['against']})", SUMMARY, rows, "Each client against itself.")


def _summary(gain: Mapping[str, float], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = {}
    for name, value in gain.items():
        groups.setdefault("seen" if scores[name]["seen"] else "unseen", []).append(value)
    return {
        group: {
            "clients": len(values),
            "mean": sum(values) / len(values),
            "better": sum(value > 0 for value in values),
            "equal": sum(value == 0 for value in values),
            "worse": sum(value < 0 for value in values),
        }
        for group, values in sorted(groups.items())
    }


def _check_same_clients(run: RunFiles, against: RunFiles) -> None:
    ours, theirs = run.config.public(), against.config.public()
    differing = [name for name in ours if name.startswith("data.") or name == "seed" if ours[name] != theirs[name]]
    if differing:
        raise RunFilesError(
            f"the clients of '{run.name}' and '{against.name}' hold other data, so they cannot be paired: "
            f"{', '.join(differing)} differ"
        )
    for one in (run, against):
        if not one.scores:
            raise RunFilesError(f"the run in '{one.path}' has not ended, so its clients have no scores to pair")
