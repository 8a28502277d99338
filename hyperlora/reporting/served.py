"""Who is served worst and why, and which classes are: what to look at next in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hyperlora.reporting.figures import ANCHOR, scores_by_client
from hyperlora.reporting.likeness import likeness
from hyperlora.reporting.page import Table
from hyperlora.reporting.run_files import RunFiles
from hyperlora.reporting.verdict import Choice, chosen_starts, interval

MOST_CLIENTS, MOST_CLASSES, FEW = 5, 3, 0.5
WORST_COLUMNS = (
    "client",
    "group",
    "as received (%)",
    "its 95 % interval",
    "training samples",
    "most missed classes",
    "what stands out",
)
CLASS_COLUMNS = ("class", "test samples", "seen clients (%)", "unseen clients (%)", "all, 95 % interval")
PLAIN = "nothing: samples, distance and anchor are as with the others"
CAPTION = "The lowest accuracy as received; what to try next stands at the top."
Score = Mapping[str, Any]


@dataclass(frozen=True)
class StandsOut:
    """What may be why a client is served worse than others.

    Attributes:
        client: its client-id.
        few_of: the training samples of the median client, where this one has few; else 0.
        nearest: the client nearest to it, where it is far from all others; else empty.
    """

    client: str
    few_of: float = 0.0
    nearest: str = ""


def worst_scores(run: RunFiles) -> list[Score]:
    """Return the scores of the clients with the lowest accuracy as received."""
    return sorted(scores_by_client(run.scores).values(), key=lambda score: float(score["zero_step"]))[:MOST_CLIENTS]


def stands_out(run: RunFiles, name: str) -> StandsOut:
    """Return whether a client has few samples, and whether its data are unlike those of all others."""
    cards = run.clients.cards if run.clients else {}
    if name not in cards:
        return StandsOut(name)
    usual = float(median(card.num_examples for card in cards.values()))
    found = likeness(cards[name].signature, {other: card for other, card in cards.items() if other != name})
    few = cards[name].num_examples < FEW * usual
    return StandsOut(name, usual if few else 0.0, found.nearest if found is not None and found.unlike else "")


def worst_served(run: RunFiles) -> Table | None:
    """Return the clients with the lowest accuracy as received, each with what may be why; None without scores."""
    choices = chosen_starts(run.scores)
    rows = [_worst_row(run, score, choices.get(score["client_id"])) for score in worst_scores(run)]
    return Table("Clients that are served worst", WORST_COLUMNS, rows, CAPTION) if rows else None


def class_table(run: RunFiles) -> Table | None:
    """Return the accuracy on each class over all clients, lowest first; None where no client tells it."""
    told = [score for score in scores_by_client(run.scores).values() if score.get("class_samples")]
    if not told:
        return None
    names = _class_names(run, max(len(score["class_samples"]) for score in told))
    rows = []
    for index, name in enumerate(names):
        every, *groups = (_counted(told, index, seen) for seen in (None, True, False))
        if every[1]:
            rows.append((every[0] / every[1], _class_row(name, every, groups)))
    rows.sort(key=lambda row: row[0])
    caption = "Over the test samples of all clients, as received, lowest first. A private run does not tell it."
    return Table("Accuracy by class", CLASS_COLUMNS, [row for _, row in rows], caption, folded=True)


def classes_counted(run: RunFiles) -> dict[str, tuple[int, int]]:
    """Return hits and test samples over all clients by class; empty where no client tells it."""
    told = [score for score in scores_by_client(run.scores).values() if score.get("class_samples")]
    names = _class_names(run, max((len(score["class_samples"]) for score in told), default=0))
    return {name: _counted(told, index, None) for index, name in enumerate(names)}


def _worst_row(run: RunFiles, score: Score, choice: Choice | None) -> tuple[str, ...]:
    name, share = str(score["client_id"]), float(score["zero_step"])
    low, high = interval(share, score["num_test"])
    card = run.clients.cards.get(name) if run.clients else None
    return (
        name,
        "seen" if score["seen"] else "unseen",
        f"{100 * share:.1f}",
        f"{100 * low:.0f} to {100 * high:.0f}",
        "-" if card is None else str(card.num_examples),
        _missed(run, score) or "-",
        "; ".join(_reasons(run, name, choice)) or PLAIN,
    )


def _reasons(run: RunFiles, name: str, choice: Choice | None) -> Iterator[str]:
    found = stands_out(run, name)
    if found.few_of:
        yield f"few training samples (the median client has {found.few_of:.0f})"
    if found.nearest:
        yield f"far from all others (nearest: {found.nearest})"
    if choice is not None and choice.gain < 0:
        yield f"{-100 * choice.gain:.0f} points better with the {ANCHOR}"


def _missed(run: RunFiles, score: Score) -> str:
    """Return the classes with most misses among the client's test samples."""
    samples, hits = score.get("class_samples", ()), score.get("class_hits", ())
    names = _class_names(run, len(samples))
    found = sorted(zip(names, hits, samples, strict=True), key=lambda one: one[1] - one[2])
    return ", ".join(f"{name} ({hit} of {count})" for name, hit, count in found[:MOST_CLASSES] if hit < count)


def _class_row(name: str, every: tuple[int, int], groups: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    low, high = interval(every[0] / every[1], every[1])
    shares = (f"{100 * hits / count:.1f}" if count else "-" for hits, count in groups)
    return (name, str(every[1]), *shares, f"{100 * low:.0f} to {100 * high:.0f}")


def _counted(scores: Sequence[Score], index: int, seen: bool | None) -> tuple[int, int]:
    """Return hits and samples of a class over the clients of a group, or of both."""
    group = [score for score in scores if seen is None or bool(score["seen"]) is seen]
    parts = [(score["class_hits"][index], score["class_samples"][index]) for score in group if score["class_samples"]]
    return sum(hits for hits, _ in parts), sum(samples for _, samples in parts)


def _class_names(run: RunFiles, count: int) -> list[str]:
    names = list(run.clients.class_names) if run.clients else []
    return [names[index] if index < len(names) else str(index) for index in range(count)]
