"""What a run is worth in sentences: accuracies, which start the validation shares choose, and how sure all that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np

from hyperlora.reporting.figures import ANCHOR, scores_by_client

Scores = Sequence[Mapping[str, Any]]
LOSS = "zero_step_validation_loss"
WHO = {True: "clients that train", False: "newcomers, which never train,"}
Z95, DRAWS = 1.959964, 2000
MOST_NAMED, LOSES_MUCH = 5, 0.1
TERMS = (
    ("anchor", "the one adapter that all clients share; what is made for a client is measured against it"),
    ("as received", "with the adapter that a client is sent, before any local step of its own"),
    ("after local steps", "the same adapter after some steps on the client's own training data"),
    ("seen, unseen", "a seen client trains in some rounds; an unseen one, a newcomer, never does"),
    (
        "by validation",
        "its own adapter or the anchor, whichever has the lower loss on the validation share",
    ),
    (
        "signature",
        "what a client tells of its data: means and standard deviations of frozen features, class frequencies, size",
    ),
    (
        "probing",
        "before an evaluation some clients score candidates, among which the server chooses",
    ),
)


@dataclass(frozen=True)
class Choice:
    """Which start a client's validation share chooses.

    Attributes:
        anchor: whether it is the anchor and not the adapter that was made for the client.
        accuracy: of the chosen one on the client's test data, a share.
        gain: of the adapter that was made for it over the anchor, a share.
    """

    anchor: bool
    accuracy: float
    gain: float


def chosen_starts(scores: Scores) -> dict[str, Choice]:
    """Return the choice of every client whose own adapter and the anchor were both scored, by client-id."""
    own, shared = scores_by_client(scores), scores_by_client(scores, ANCHOR)
    choices = {}
    for name in sorted(set(own) & set(shared)):
        mine, anchor = own[name], shared[name]
        better = LOSS in mine and LOSS in anchor and anchor[LOSS] < mine[LOSS]
        taken = anchor if better else mine
        choices[name] = Choice(better, taken["zero_step"], mine["zero_step"] - anchor["zero_step"])
    return choices


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the bounds of the 95 % Wilson interval of a share that was seen among ``count`` samples."""
    if not count:
        return 0.0, 1.0
    middle = (share + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    half = Z95 / (1 + Z95**2 / count) * sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def gain_interval(gains: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the 95 % interval of a mean over clients: percentiles of ``DRAWS`` bootstrap means."""
    values = np.asarray(gains, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def verdict(scores: Scores) -> str:
    """Return what the last evaluation says, in a few sentences; empty where clients were not scored one by one."""
    own, choices = scores_by_client(scores), chosen_starts(scores)
    parts, chosen = [], choice_sentence(scores)
    for seen, who in WHO.items():
        group = [name for name, score in own.items() if bool(score["seen"]) is seen]
        if group:
            mean = _mean(own[name]["zero_step"] for name in group)
            parts.append(f"{len(group)} {who} have {mean}{_over(group, choices)}")
    if not parts:
        return ""
    sentence = f"On their own test data, with the adapter that they are sent, {'; '.join(parts)}."
    return f"{sentence} {chosen}".rstrip()


def choice_sentence(scores: Scores) -> str:
    """Return for how many clients the validation share chooses the anchor; empty where it does for none."""
    choices = chosen_starts(scores)
    taken = sum(choice.anchor for choice in choices.values())
    if not taken:
        return ""
    chosen, own = (_mean(values) for values in ((one.accuracy for one in choices.values()), _own(scores, choices)))
    return (
        f"The validation share would choose the anchor for {taken} of {len(choices)} clients: as chosen they would "
        f"have {chosen}, with their own adapters, which they are sent, they have {own}."
    )


def _own(scores: Scores, names: Iterable[str]) -> list[float]:
    found = scores_by_client(scores)
    return [found[name]["zero_step"] for name in names]


def losers(scores: Scores) -> str:
    """Return a sentence on clients that lose much by their own adapter against the anchor; empty where none does."""
    lost = sorted((c.gain, name, c.anchor) for name, c in chosen_starts(scores).items() if c.gain <= -LOSES_MUCH)
    if not lost:
        return ""
    named = ", ".join(f"{name} ({100 * gain:+.0f} points)" for gain, name, _ in lost[:MOST_NAMED])
    more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    saved = sum(anchor for *_, anchor in lost)
    return (
        f"Worse with their own adapter than with the anchor, by 10 points or more: {named}{more}. The validation share "
        f"chooses the anchor for {saved} of these {len(lost)}."
    )


def _over(group: Sequence[str], choices: Mapping[str, Choice]) -> str:
    gains = [choices[name].gain for name in group if name in choices]
    if not gains:
        return ""
    better = sum(gain > 0 for gain in gains)
    return f" ({100 * fmean(gains):+.1f} points over the anchor, better for {better} of {len(gains)})"


def _mean(values: Any) -> str:
    return f"{100 * fmean(values):.1f} %"
