"""What to try next, as far as the run itself says: a sentence for each thing that it shows, and none for others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from hyperlora.reporting.figures import ANCHOR, GROUPS, accuracy_over_rounds, gains, grouped, scores_by_client
from hyperlora.reporting.run_files import RunFiles
from hyperlora.reporting.served import StandsOut, classes_counted, stands_out, worst_scores
from hyperlora.reporting.verdict import gain_interval, interval

RISEN, WIDE, SHARE_OF_ROUNDS, MOST_NAMED = 0.01, 0.3, 0.3, 3
NOTHING = "Nothing stands out: no client is far from the others or short of samples, and no curve rises or falls."


def advice(run: RunFiles) -> list[str]:
    """Return what follows from the scores of a run that has ended; empty where there are none."""
    if not run.scores:
        return []
    found = [*_curve(run), *_starts(run), *_local_steps(run), *_clients(run), *_classes(run), *_samples(run)]
    return found or [NOTHING]


def _curve(run: RunFiles) -> Iterator[str]:
    """Say for which group accuracy as received still rose at the end, by a point and to its highest, or fell by one."""
    series, last = accuracy_over_rounds(run.records), len(run.records)
    for group in GROUPS:
        points = series.get(f"{group} zero_step", [])
        early = [point["mean"] for point in points if point["round"] <= (1 - SHARE_OF_ROUNDS) * last]
        if not early:
            continue
        end, best = points[-1]["mean"], max(points, key=lambda point: point["mean"])
        if end == best["mean"] >= max(early) + RISEN:
            yield (
                f"The curve of {group} clients still rises ({100 * (end - max(early)):+.1f} points in the last third): "
                f"make more rounds, hyperlora run --resume {run.name} -c federation.rounds={2 * last}"
            )
        elif best["mean"] in early and end <= best["mean"] - RISEN:
            lost = f"{100 * (best['mean'] - end):.1f} points more than at the end"
            yield (
                f"{group.capitalize()} clients had most in round {best['round']}, {lost}: fewer rounds or local steps "
                "may do (federation.rounds, train.local-steps); it is one seed and test data: try another seed."
            )


def _starts(run: RunFiles) -> Iterator[str]:
    """Say for which group adapters that are made for clients are worse than the anchor."""
    own, shared = scores_by_client(run.scores), scores_by_client(run.scores, ANCHOR)
    for group, values in grouped(gains(own, shared), own).items():
        low, high = gain_interval(values)
        if len(values) > 1 and fmean(values) < 0:
            bounds = f"{100 * low:+.1f} to {100 * high:+.1f}{'' if high < 0 else ', which may be chance'}"
            yield (
                f"What is made for {group} clients is {-100 * fmean(values):.1f} points below the {ANCHOR} (95 % "
                f"interval of the gain {bounds}): let each client's validation share choose, as personalize does, and "
                "look in the map of signatures whether clients like these train."
            )


def _local_steps(run: RunFiles) -> Iterator[str]:
    """Say for which group local steps surely help or harm."""
    own = scores_by_client(run.scores)
    values = {name: score["k_step"] - score["zero_step"] for name, score in own.items()}
    for group, changes in grouped(values, own).items():
        low, high = gain_interval(changes)
        bounds = f"{100 * fmean(changes):+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        if len(changes) > 1 and high < 0:
            yield f"Local steps harm {group} clients ({bounds}): fewer of them (train.adapt-steps), or none."
        elif len(changes) > 1 and low > RISEN:
            yield f"Local steps help {group} clients ({bounds}): make them, and try more (train.adapt-steps)."


def _clients(run: RunFiles) -> Iterator[str]:
    found = [stands_out(run, str(score["client_id"])) for score in worst_scores(run)]
    if far := [one for one in found if one.nearest]:
        yield (
            f"Far from all other clients: {_named(far)}. What others know is of little use to them: clients with data "
            "like theirs, or more local steps (train.adapt-steps)."
        )
    if few := [one for one in found if one.few_of]:
        yield (
            f"Few training samples: {_named(few)} (the median client has {few[0].few_of:.0f}). More samples of theirs "
            "are worth most."
        )


def _classes(run: RunFiles) -> Iterator[str]:
    """Name classes whose interval lies below the accuracy over all samples."""
    counted = classes_counted(run)
    total, right = sum(samples for _, samples in counted.values()), sum(hits for hits, _ in counted.values())
    low = {
        name: hits / samples
        for name, (hits, samples) in counted.items()
        if samples and interval(hits / samples, samples)[1] < right / total
    }
    if low:
        worst = sorted(low, key=low.__getitem__)[:MOST_NAMED]
        named = ", ".join(f"{name} ({100 * low[name]:.0f} % of {counted[name][1]})" for name in worst)
        more = f" and {len(low) - len(worst)} more" if len(low) > len(worst) else ""
        yield f"Classes below the {100 * right / total:.0f} % over all: {named}{more}. Samples of these classes."


def _samples(run: RunFiles) -> Iterator[str]:
    """Say how many clients have so few test samples that their numbers say little."""
    own = scores_by_client(run.scores).values()
    bounds = [interval(score["zero_step"], score["num_test"]) for score in own]
    wide = sum(high - low > WIDE for low, high in bounds)
    if wide:
        yield (
            f"{wide} of {len(bounds)} clients have an interval wider than {100 * WIDE:.0f} points: before comparing "
            "them with one another, get more test samples (data.test-fraction) or more seeds."
        )


def _named(clients: Sequence[StandsOut]) -> str:
    return ", ".join(one.client for one in clients)
