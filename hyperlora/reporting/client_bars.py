"""What each client has, as bars: how sure a number is depends on the test samples that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hyperlora.reporting.figures import scores_by_client
from hyperlora.reporting.page import Panel
from hyperlora.reporting.run_files import RunFiles
from hyperlora.reporting.svg import INK, SERIES, canvas, inline_svg, plain, tip
from hyperlora.reporting.verdict import interval

MOST_BARS, LONGEST = 24, 18
CAPTION = (
    "Test accuracy as received, lowest first; in brackets the client's number of test samples, the line is the 95 % "
    "interval that follows from it (Wilson). Where lines overlap widely, the order says little."
)


def clients_panel(run: RunFiles) -> Panel | None:
    """Return a bar for each client, or for those with the lowest accuracy; None where the run has no scores."""
    scores = sorted(scores_by_client(run.scores).values(), key=lambda score: score["zero_step"])
    if not scores:
        return None
    left_out = f" The {MOST_BARS} lowest of {len(scores)}; all of them are in the table of clients."
    caption = CAPTION + (left_out if len(scores) > MOST_BARS else "")
    return Panel("What each client has", draw_clients(scores[:MOST_BARS], "client-bars"), caption)


def draw_clients(scores: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return a bar with its 95 % interval for each of ``scores``, from the top down; unseen ones are hollow."""
    tips = []
    with canvas(1.1 + 0.19 * len(scores)) as (figure, axes):
        for row, score in enumerate(scores):
            share, count = float(score["zero_step"]), int(score["num_test"])
            low, high = interval(share, count)
            color, fill = (SERIES[0], SERIES[0]) if score["seen"] else (SERIES[1], "none")
            axes.barh(row, 100 * share, height=0.6, edgecolor=color, facecolor=fill, alpha=0.55, gid=tip(row))
            axes.plot([100 * low, 100 * high], [row, row], color=INK, lw=1.4)
            bounds = f"{100 * low:.0f} to {100 * high:.0f}"
            tips.append(f"{score['client_id']}: {100 * share:.1f} % of {count} test samples, {bounds}")
        labels = [plain(f"{shortened(str(score['client_id']))} ({score['num_test']})") for score in scores]
        axes.set_yticks(range(len(scores)), labels)
        axes.set(ylim=(len(scores) - 0.4, -0.6), xlim=(0, 100), xlabel="test accuracy (%)")
        axes.grid(axis="y", visible=False)
        axes.barh([0], [0], color=SERIES[0], alpha=0.55, label="seen")
        axes.barh([0], [0], edgecolor=SERIES[1], facecolor="none", alpha=0.55, label="unseen")
        axes.plot([], [], color=INK, lw=1.4, label="95 % interval")
        figure.legend(loc="outside upper left", ncols=3)
        return inline_svg(figure, name, "Accuracy of each client with its 95 % interval", tips)


def shortened(name: str) -> str:
    """Return a name of at most ``LONGEST`` characters: what is too much goes from the middle."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"
