"""The report of one run: which panels, tiles and tables its page has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hyperlora.clock import clock
from hyperlora.reporting.advice import advice
from hyperlora.reporting.client_bars import clients_panel
from hyperlora.reporting.comparison import anchor_table, gain_by_domain, paired_panels, paired_table
from hyperlora.reporting.figures import (
    ANCHOR,
    GROUPS,
    STEPS,
    figures_of,
    paired_figures,
    scores_by_client,
    traffic_and_time,
)
from hyperlora.reporting.page import Page, Panel, Table
from hyperlora.reporting.panels import (
    draw_accuracy,
    draw_attention,
    draw_phases,
    draw_signatures,
    draw_spectra,
)
from hyperlora.reporting.run_files import RunFiles
from hyperlora.reporting.served import class_table, worst_served
from hyperlora.reporting.state_view import StateView, view_state
from hyperlora.reporting.verdict import TERMS, chosen_starts, interval, losers, verdict

CLIENT_COLUMNS = (
    "client",
    "domain",
    "group",
    "test samples",
    "as received (%)",
    "its 95 % interval",
    "after local steps (%)",
    "over the anchor (points)",
    "by validation",
)


def report_page(run: RunFiles, against: RunFiles | None = None) -> Page:
    """Return the page of a run, with a base run if there is one; a panel that the run has no data for is left out.

    Raises:
        RunFilesError: the clients of the two runs cannot be paired.
    """
    config, figures = run.config, figures_of(run)
    paired = paired_figures(run, against) if against else None
    made, planned = figures["rounds"], figures["rounds_asked_for"]
    unfinished = f"This run made {made} of {planned} rounds so far; go on with: hyperlora run --resume {run.path}"
    return Page(
        title=f"{config.method} on {config.data.name}, seed {config.seed}",
        subtitle=(
            f"{run.name}: {config.model.name}, LoRA rank {config.lora.rank}, {made} of "
            f"{planned} rounds, {config.federation.clients_per_round} clients a round, "
            f"{config.train.local_steps} local steps of {config.train.batch_size}"
        ),
        tiles=list(_tiles(figures)),
        panels=list(_panels(run, figures, paired)),
        tables=[*([paired_table(paired)] if paired else []), *_tables(run, figures)],
        notes=[*([unfinished] if made < planned else []), *filter(None, [losers(run.scores)])],
        verdict=verdict(run.scores),
        terms=TERMS,
        advice=advice(run),
    )


def _tiles(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for group, columns in figures["accuracy"].items():
        for column, words in STEPS.items():
            yield f"{group}, {words}", f"{100 * columns[column]['mean']:.1f} %"
    mib, wall = traffic_and_time(figures)
    yield "sent and received", f"{mib:.1f} MiB"
    yield "time of the run", clock(wall)
    yield "contributions left out or cut", str(sum(failure["count"] for failure in figures["failures"]))


def _panels(run: RunFiles, figures: dict[str, Any], paired: dict[str, Any] | None) -> Iterator[Panel]:
    for group in GROUPS:
        series = {name: line for name, line in figures["accuracy_over_rounds"].items() if name.startswith(f"{group} ")}
        if series:
            yield Panel(
                f"Accuracy over rounds, {group} clients",
                draw_accuracy(series, f"accuracy-{group}"),
                "Mean over clients of the accuracy on each client's own test data; the band is one standard deviation "
                "over clients around the accuracy as received.",
            )
    if paired:
        yield from paired_panels(run, paired)
    if figures["gain_over_anchor"]:
        yield Panel(
            "What a personal adapter is worth",
            gain_by_domain(run, figures["gain_over_anchor"], "gain", f"the {ANCHOR}"),
            "Test accuracy as received, of the adapter made for the client minus that of the anchor that all share; "
            "one point for each client, by domain; the line below them is the 95 % interval of the mean over clients.",
        )
    yield from filter(None, [clients_panel(run)])
    if run.clients is not None and len(run.clients.cards) > 1:
        yield Panel(
            "Map of signatures",
            draw_signatures(list(run.clients.cards.values()), "signatures"),
            "Principal components of the standardised signatures. Clients with similar data are close; hollow "
            "markers are unseen clients.",
        )
    yield from _state_panels(run, view_state(run))
    yield Panel("Traffic", draw_phases(run.records, "bytes"), "Size of the messages of each round.")
    trained = f"Clients trained {figures['seconds'].get('training', 0.0):.0f} s in all, summed over clients."
    yield Panel("Time", draw_phases(run.records, "seconds"), f"Wall time of each round. {trained}")


def _state_panels(run: RunFiles, view: StateView | None) -> Iterator[Panel]:
    if view is None:
        return
    if view.attention is not None and run.clients is not None:
        domains = {name: card.domain for name, card in run.clients.cards.items()}
        yield Panel(
            "Attention between clients",
            draw_attention(view.attention, view.attending, view.attended, domains, "attention"),
            f"How much of each remembered deviation enters a client's start after round {view.server_round}; every "
            "row sums to 1. Unseen clients have a row and no column.",
        )
    if view.anchor_spectrum:
        yield Panel(
            "Singular values",
            draw_spectra(view.anchor_spectrum, view.residual_spectrum, "spectra"),
            f"Of the anchor's dW after round {view.server_round}, mean over blocks, by module kind."
            + _offered(run, view),
        )


def _offered(run: RunFiles, view: StateView) -> str:
    if not view.residual_spectrum:
        return ""
    share = run.config.flat()["corrector.share"]
    return f" Dashed: what the rank cut off and the corrector carries into the next round; share used again: {share}."


def _tables(run: RunFiles, figures: dict[str, Any]) -> Iterator[Table]:
    yield from filter(None, (anchor_table(run), worst_served(run), class_table(run)))
    faults = list(_faults(figures))
    yield Table(
        "Faults and rejections",
        ("phase", "reason", "times", "who", "rounds"),
        faults,
        "" if faults else f"None: every reply of {figures['rounds']} rounds was usable.",
    )
    drifted = [
        (str(record["server_round"]), name, f"{moved:.2f}")
        for record in run.records
        for name, moved in record["drift"].items()
    ]
    if drifted:
        columns = ("round", "client", "moved by (standard deviations)")
        yield Table("Clients whose data changed", columns, drifted, folded=True)
    if run.scores:
        yield Table("Clients", CLIENT_COLUMNS, list(_client_rows(run, figures)), folded=True)
    yield Table("Configuration", ("key", "value"), [(k, str(v)) for k, v in run.config.public().items()], folded=True)
    packages = run.environment["packages"].items()
    versions = [(name, version or "not installed") for name, version in packages]
    made_with = [*versions, ("python", run.environment["python"]), ("backbone fingerprint", run.fingerprint)]
    yield Table("Made with", ("what", "version"), made_with, folded=True)


def _faults(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for who, reason in sorted(figures["left_out"].items()):
        yield ("joining", reason, "1", who, "all")
    for failure in figures["failures"]:
        who, when = _listed(failure["clients"]), _listed(failure["rounds"])
        yield (failure["phase"], failure["reason"], str(failure["count"]), who, when)


def _client_rows(run: RunFiles, figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    gain, choices = figures["gain_over_anchor"], chosen_starts(run.scores)
    for name, score in scores_by_client(run.scores).items():
        group = "seen" if score["seen"] else "unseen"
        received, adapted = (f"{100 * score[column]:.1f}" for column in STEPS)
        low, high = (f"{100 * bound:.0f}" for bound in interval(score["zero_step"], score["num_test"]))
        over = f"{100 * gain[name]:+.1f}" if name in gain else "-"
        chosen = "-" if name not in choices else f"the {ANCHOR}" if choices[name].anchor else "its own"
        bounds = f"{low} to {high}"
        yield (name, score["domain"], group, str(score["num_test"]), received, bounds, adapted, over, chosen)


def _listed(values: list[Any], most: int = 6) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"
