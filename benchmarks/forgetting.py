"""``python -m benchmarks.forgetting``: what do clients of a domain lose while those of other domains train?

PACS, one domain after the other (``federation.domain-rounds``), development seeds. A client's forgetting is its test
accuracy as received right after its domain's turn less that at the end of the run (Chaudhry et al. 2018,
arXiv 1801.10112), over all domains but the last. At the end of HyperLoRA's runs clients of former domains are also
served what the server can make of class statistics that they told before (:mod:`benchmarks.remembering`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.bootstrap import paired_difference
from benchmarks.head_parts import finished_run
from benchmarks.remembering import remembered
from benchmarks.result import MACHINE_KEYS
from benchmarks.study import SEEDS, Overrides, Seeds, Study, Target, given
from benchmarks.suite import HERE, Job
from benchmarks.table import cell, markdown
from hyperlora.cli.settings import flatten, read_toml
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.reporting.run_files import RunFiles
from strategies.engine.checkpoint import Checkpoint, CheckpointStore
from strategies.methods.registry import build_method

RESULT, PRESET = HERE / "results" / "forgetting.json", HERE / "presets" / "pacs.toml"
DOMAINS, TURN = 4, 5
BASE: Mapping[str, Scalar] = {
    "data.dirichlet-alpha": 0.5,
    "prior.use": "on",
    "train.adapt-steps": 0,
    "federation.rounds": DOMAINS * TURN,
    "federation.domain-rounds": TURN,
    "federation.clients-per-round": 6,
    "federation.evaluate-every": TURN,
    "federation.evaluate-steps": "",
    "run.checkpoint-every": TURN,
    "run.checkpoints-kept": DOMAINS,
}
REFERENCE, DEFAULT = "fedit", "hyperlora"
ROWS: Mapping[str, Mapping[str, Scalar]] = {
    REFERENCE: {"method": "fedit"},
    DEFAULT: {"method": "hyperlora"},
    "hyperlora, deviations at use": {"method": "hyperlora", "hyperlora.deviations": "serving"},
    "hyperlora, rank 8": {"method": "hyperlora", "lora.rank": 8, "lora.alpha": 16.0},
    "fedit, no turns": {"method": "fedit", "federation.domain-rounds": 0},
    "hyperlora, no turns": {"method": "hyperlora", "federation.domain-rounds": 0},
}
GROUPS = ("seen", "unseen")
LEARNED, KEPT = "after its turn", "at the end"
Run = Mapping[str, Any]


def main(
    row: Annotated[list[str] | None, typer.Option(help="rows to run; all by default")] = None,
    seed: Seeds = None,
    override: Overrides = None,
    to: Target = RESULT,
) -> None:
    """Make the runs that are missing, seeds outermost, and print the tables."""
    study = Study(to)
    wanted = {(job.variant, job.config.seed): job for job in jobs(row or list(ROWS), seed or SEEDS, given(override))}
    for point in study.missing({"row": name, "seed": number} for name, number in wanted):
        study.add(point, measured(wanted[point["row"], point["seed"]]))
    study.say(forgetting_table(study.runs))


def jobs(rows: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Scalar]) -> Iterator[Job]:
    """Yield the runs of some rows."""
    preset = flatten(read_toml(PRESET), PRESET)
    for seed in seeds:
        for name in rows:
            values = {**preset, **BASE, **ROWS[name], **overrides, "seed": seed}
            yield Job("forgetting", name, RunConfig.parse(values))


def measured(job: Job) -> dict[str, Any]:
    """Make a run; return every client's accuracy as received by round, and what memories of the server are worth."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hyperlora-forgetting-") as scratch:
        run = finished_run(job.config, Path(scratch) / "run")
        found = checkpoints(run)
        own = remembered(run, found, turns(found)) if job.variant == DEFAULT else {}
    return {
        "seconds": time.perf_counter() - began,
        "config": {key: value for key, value in job.config.flat().items() if key not in MACHINE_KEYS},
        "clients": by_round(found),
        "remembered": own,
    }


def checkpoints(run: RunFiles) -> list[Checkpoint]:
    """Return the checkpoints of a run at the end of every turn."""
    kept, rounds = CheckpointStore(run.path / "checkpoints", keep=1), run.config.federation
    classes = build_method(run.config).state_classes
    return [kept.read(one, classes) for one in range(rounds.evaluate_every, rounds.rounds + 1, rounds.evaluate_every)]


def turns(found: Sequence[Checkpoint]) -> dict[str, int]:
    """Return by domain, in the order of their turns, which of the checkpoints is of the end of its own."""
    domains = sorted({card.domain for card in found[-1].cards.values() if card.trains})
    return {domain: index for index, domain in enumerate(domains)}


def by_round(found: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """Return for every client its domain, whether it trains, and its accuracies as received, turn by turn."""
    scores = [{one.client_id: one.zero_step for one in point.scores if one.track == START_TRACK} for point in found]
    return [
        {"client_id": name, "domain": card.domain, "seen": card.trains, "accuracy": [told[name] for told in scores]}
        for name, card in sorted(found[-1].cards.items())
    ]


def of_former(run: Run) -> Run:
    """Return a run whose clients are those of all domains but the last, after their turn and at the end."""
    domains = sorted({one["domain"] for one in run["clients"]})
    own = [(domains.index(one["domain"]), one) for one in run["clients"]]
    clients = [{LEARNED: one["accuracy"][turn], KEPT: one["accuracy"][-1], **_named(one)} for turn, one in own]
    return {
        "seed": run["seed"],
        "clients": [one for one, (turn, _) in zip(clients, own, strict=True) if turn < len(domains) - 1],
    }


def with_forgetting(run: Run) -> Run:
    """Return a run whose clients are those of all domains but the last, with what they forgot."""
    former = of_former(run)
    clients = [{**one, "forgotten": one[LEARNED] - one[KEPT]} for one in former["clients"]]
    return {**former, "clients": clients}


def at_the_end(run: Run) -> Run:
    """Return a run with the accuracies of all clients at its end."""
    return {"seed": run["seed"], "clients": [{KEPT: one["accuracy"][-1], **_named(one)} for one in run["clients"]]}


def with_memory(run: Run, way: str) -> Run:
    """Return a run with the accuracies of the clients of former domains where the server remembers in one way."""
    clients = [
        {KEPT: run["remembered"][way][one["client_id"]], **_named(one)}
        for one in run["clients"]
        if one["client_id"] in run["remembered"][way]
    ]
    return {"seed": run["seed"], "clients": clients}


def _named(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"client_id": one["client_id"], "seen": one["seen"], "track": START_TRACK}


def forgetting_table(runs: Sequence[Run]) -> str:
    """Return markdown tables: what was forgotten, differences to FedIT and to the default, what memories are worth.

    Args:
        runs: of :func:`main`'s file.
    """
    found = {name: [run for run in runs if run["row"] == name] for name in ROWS}
    found = {name: own for name, own in found.items() if own}
    seeds = sorted({run["seed"] for run in runs})
    note = (
        f"Percent and points, as received; seeds {', '.join(map(str, seeds))}, 95 % intervals of a bootstrap over "
        f"seeds and clients; made at commit {', '.join(sorted({run['commit'] for run in runs}))}."
    )
    tables = [_table(found), _against(found, REFERENCE)]
    if set(found) - {REFERENCE, DEFAULT} and DEFAULT in found:
        tables.append(_against({name: own for name, own in found.items() if name != REFERENCE}, DEFAULT))
    return "\n\n".join([*tables, _memory_table(found.get(DEFAULT, [])), note])


def _takes_turns(name: str) -> bool:
    return "federation.domain-rounds" not in ROWS[name]


def _table(found: Mapping[str, Sequence[Run]]) -> str:
    columns = [
        f"{group}, {what}" for group in GROUPS for what in (LEARNED, KEPT, "forgotten", "all domains at the end")
    ]
    rows = {
        f"{name} ({len(own)} seed(s))": [one for group in GROUPS for one in _cells(name, own, group)]
        for name, own in found.items()
    }
    return markdown("one domain after the other", columns, rows)


def _cells(name: str, runs: Sequence[Run], group: str) -> list[str]:
    former = [of_former(run) for run in runs]
    last = _mean([at_the_end(run) for run in runs], group, KEPT)
    if not _takes_turns(name):
        return ["", "", "", last]
    lost = paired_difference(former, former, group, (LEARNED, KEPT))
    return [_mean(former, group, LEARNED), _mean(former, group, KEPT), str(lost), last]


def _mean(runs: Sequence[Run], group: str, column: str) -> str:
    """Return the mean over clients, with the standard deviation over seeds, in percent."""
    chosen = [[one[column] for one in run["clients"] if one["seen"] == (group == "seen")] for run in runs]
    return cell([100 * sum(values) / len(values) for values in chosen])


def _against(found: Mapping[str, Sequence[Run]], reference: str) -> str:
    columns = [f"{group}, {what}" for group in GROUPS for what in ("forgotten", "all domains at the end")]
    rows = {}
    for name in [one for one in found if one != reference]:
        changes = []
        for group in GROUPS:
            lost = _change(found, (name, reference), with_forgetting, group, "forgotten") if _takes_turns(name) else ""
            changes += [lost, _change(found, (name, reference), at_the_end, group, KEPT)]
        rows[name] = changes
    return markdown(f"minus {reference}", columns, rows)


def _change(
    found: Mapping[str, Sequence[Run]], names: tuple[str, str], read: Callable[[Run], Run], group: str, column: str
) -> str:
    own, others = ([read(run) for run in found.get(one, [])] for one in names)
    change = paired_difference(own, others, group, (column, column))
    return str(change) if change else ""


def _memory_table(runs: Sequence[Run]) -> str:
    ways = list(runs[0]["remembered"]) if runs else []
    rows = {}
    for way in ways:
        own, first = ([with_memory(run, one) for run in runs] for one in (way, ways[0]))
        changes = [paired_difference(own, first, group, (KEPT, KEPT)) for group in GROUPS]
        pairs = zip(GROUPS, changes, strict=True)
        rows[way] = [
            text for group, change in pairs for text in (_mean(own, group, KEPT), str(change) if way != ways[0] else "")
        ]
    columns = [text for group in GROUPS for text in (f"{group}, former domains", f"minus {ways[0] if ways else ''}")]
    return markdown("what the server knows of former domains' classes", columns, rows)


if __name__ == "__main__":
    typer.run(main)
