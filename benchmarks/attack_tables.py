"""Tables of :mod:`benchmarks.attacks` and :mod:`benchmarks.membership`, made from their results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.bootstrap import paired_difference
from benchmarks.table import cell, markdown

NO_ATTACK = "none"
RELEASES = ("signature", "start as received", "adapter sent back")
COLUMNS = ("epsilon: signature", "epsilon: all", *RELEASES, "seen, as received", "seen, after K steps")


def attack_table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], order: Sequence[str]) -> str:
    """Return a markdown table: honest seen clients' accuracy as received in percent, by setting and variant.

    Args:
        results: setting -> variant -> runs.
        order: the variants.
    """
    rows = {
        setting: [cell([honest_accuracy(run) for run in found.get(name, [])]) for name in order]
        for setting, found in results.items()
        if found
    }
    return markdown("attack, share of bad clients", list(order), rows)


def loss_table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], order: Sequence[str]) -> str:
    """Return a markdown table: what an attack changes for honest clients as received, in points with 95 % intervals.

    Args:
        results: setting -> variant -> runs; the setting ``none`` is what the others are compared with, by client and
            seed.
        order: the variants.
    """
    groups = [(name, group) for name in order for group in ("seen", "unseen")]
    honest, rows = results[NO_ATTACK], {}
    for setting, found in results.items():
        pairs = [(found.get(name, []), honest.get(name, []), group) for name, group in groups]
        if setting != NO_ATTACK and any(attacked for attacked, _, _ in pairs):
            changes = [paired_difference(*pair, ("zero_step", "zero_step")) for pair in pairs]
            rows[setting] = [str(one) if one else "" for one in changes]
    return markdown("attack", [", ".join(pair) for pair in groups], rows)


def honest_accuracy(run: Mapping[str, Any]) -> float:
    """Return the mean accuracy as received of the seen clients that do not attack, in percent.

    0 where no client could use what it was sent: an adapter of numbers that no client accepts.
    """
    shares = [
        float(client["zero_step"])
        for client in run["clients"]
        if client["track"] == "start" and client["seen"] and client["client_id"] not in run["attackers"]
    ]
    return 100 * mean(shares) if shares else 0.0


def membership_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a row for each noise: epsilons, the attacker's success on each release, accuracies in percent.

    Success is the area under the ROC curve in percent (50 is a guess) and, in brackets, the share of members found at
    5 % false alarms.
    """
    return markdown("noise", COLUMNS, {name: _row(runs) for name, runs in found.items()})


def _row(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    epsilons = [runs[0][key] for key in ("epsilon_signature", "epsilon_run")]
    told = ["none" if one is None else f"{one:.3g}" for one in epsilons]
    areas = [f"{_percent(runs, release, 'auc')} ({_percent(runs, release, 'found')})" for release in RELEASES]
    return [*told, *areas, *(cell([100 * run[key] for run in runs]) for key in ("zero_step", "k_step"))]


def _percent(runs: Sequence[Mapping[str, Any]], release: str, figure: str) -> str:
    return cell([100 * run["attacks"][release][figure] for run in runs])


def lira_table(runs: Sequence[Mapping[str, Any]], column: str = "epsilon of one") -> str:
    """Return a row for each release: its epsilon (``column``) and the success of the attack with shadow models."""
    rows = {}
    for release in runs[0]:
        epsilon = runs[0][release]["epsilon"]
        shares = [cell([100 * run[release][figure] for run in runs]) for figure in ("auc", "found")]
        rows[release] = ["none" if epsilon is None else f"{epsilon:.3g}", *shares]
    return markdown("release", (column, "area under the curve", "members found at 5 % false alarms"), rows)
