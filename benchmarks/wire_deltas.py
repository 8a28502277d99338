"""``python -m benchmarks.wire_deltas``: at equal bytes, fewer bits for every number or a change of low rank?

A reply can bring the change that training made, end - start, in narrow numbers, or as the best approximation of lower
rank of the product's change. A start can bring all of its numbers, or a change of low rank against the start that the
client had last (the fresh adapter before). Rounds are HyperLoRA's own: starts are the running average of the anchors,
which move by the mean of what the server decodes. Told are the bytes of factors and head, how far the mean change that
arrives is from the true one, and what clients get in the end. Development seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Annotated, Any

import torch
import typer

from benchmarks.study import SEEDS, Overrides, Seeds, Study, Target, given
from benchmarks.suite import HERE
from benchmarks.sums import GROUPS, configured, described, difference, mean_of
from benchmarks.sums_only import MOST, Clients, Evaluation
from benchmarks.table import markdown
from client_app.runtime import open_runtime
from hyperlora.config.schema import RunConfig
from hyperlora.messages.number_formats import pack, unpack
from models.adapters.adapter import Adapter, combine, subtract
from models.lowrank.factors import norm
from strategies.methods.hyperlora.config import HyperLoraSettings

RESULT = HERE / "results" / "wire-deltas.json"
SETTING = "Dirichlet 0.5"
ROWS = ("served", "the anchor's head")


@dataclass(frozen=True)
class Coding:
    """How numbers travel: their format, and the rank of a change (0: entry by entry, or all of a start)."""

    wire: str = "float32"
    reply_rank: int = 0
    start_rank: int = 0


REFERENCE = "float32"
CODINGS: Mapping[str, Coding] = {
    REFERENCE: Coding(),
    "int8": Coding("int8"),
    "int4": Coding("int4"),
    "int8, replies of rank 1": Coding("int8", reply_rank=1),
    "int4, replies of rank 1": Coding("int4", reply_rank=1),
    "int8, starts by changes of rank 1": Coding("int8", start_rank=1),
}


@dataclass
class Line:
    """What travels between the server and its clients, and what was counted on the way.

    Attributes:
        coding: how numbers travel.
        fresh: the adapter before round 1, which all clients have.
        held: the start that each client had last.
        moved: bytes of every start (``down``) and reply (``up``).
        errors: of every round the squared error of the mean change of the products, over its own square.
    """

    coding: Coding
    fresh: Adapter
    held: dict[str, Adapter] = field(default_factory=dict)
    moved: dict[str, list[int]] = field(default_factory=lambda: {"down": [], "up": []})
    errors: list[float] = field(default_factory=list)

    def start(self, name: str, served: Adapter) -> Adapter:
        """Return what a client decodes of the start that it is to be served."""
        rank = self.coding.start_rank
        if not rank:
            return self._sent(served, "down", None)
        before = self.held.get(name, self.fresh)
        change = self._sent(subtract(served, before).truncated(rank), "down", None)
        self.held[name] = combine([before, change], [1.0, 1.0]).truncated(served.rank).aligned(served)
        return self.held[name]

    def change(self, start: Adapter, end: Adapter, chance: torch.Generator) -> Adapter:
        """Return the change of the product, of any rank, that the server decodes of a reply."""
        if self.coding.reply_rank:
            return self._sent(subtract(end, start).truncated(self.coding.reply_rank), "up", chance)
        was = start.tensors()
        entries = Adapter.from_tensors({name: one - was[name] for name, one in end.tensors().items()})
        read = self._sent(entries, "up", chance).tensors()
        return subtract(Adapter.from_tensors({name: was[name] + one for name, one in read.items()}), start)

    def _sent(self, adapter: Adapter, way: str, chance: torch.Generator | None) -> Adapter:
        tensors = adapter.tensors()
        packed = pack(tensors, self.coding.wire, chance)
        self.moved[way].append(sum(one.nbytes for one in packed.values()))
        shapes = {name: tuple(one.shape) for name, one in tensors.items()}
        return Adapter.from_tensors(unpack(packed, self.coding.wire, shapes))


def served_anchor(clients: Clients, line: Line) -> Adapter:
    """Return the running average of the anchors after all rounds."""
    share, config, anchor = clients.config.of(HyperLoraSettings).averaging, clients.config, line.fresh
    average, chance = anchor, torch.Generator().manual_seed(config.seed)
    for server_round in range(1, config.federation.rounds + 1):
        changes, true, counts = [], [], []
        for name in clients.cohort(server_round):
            start = line.start(name, average)
            count, end = clients.trained_by(name, start, server_round)
            counts.append(count)
            true.append(subtract(end, start))
            changes.append(line.change(start, end, chance))
        weights = [one / sum(counts) for one in counts]
        line.errors.append(relative_error(changes, true, weights))
        anchor = combine([anchor, *changes], [1.0, *weights]).truncated(anchor.rank).aligned(anchor)
        average = combine([average if server_round > 1 else anchor, anchor], [1.0 - share, share])
        average = average.truncated(anchor.rank).aligned(anchor)
    return average


def relative_error(told: Sequence[Adapter], true: Sequence[Adapter], weights: Sequence[float]) -> float:
    """Return how far the mean of products is from the true one, squared, over the square of the true one."""
    exact = _square(combine(true, weights))
    return _square(combine([*told, *true], [*weights, *(-one for one in weights)])) / exact if exact else 0.0


def _square(adapter: Adapter) -> float:
    return sum(float(norm(one.to(torch.float64)).square().sum()) for one in adapter.low_rank.values())


def measured(config: RunConfig, coding: Coding) -> dict[str, Any]:
    """Return the test accuracies of all clients by row, who trains, KiB of a start and a reply, and the mean error."""
    clients = Clients.of(open_runtime(config))
    line = Line(coding, clients.runtime.model.fresh_adapter(config.seed))
    there = Evaluation.of(clients, served_anchor(clients, line))
    made = {ROWS[0]: there.served(there.published(MOST)), ROWS[1]: there.plain()}
    return {
        "rows": {row: there.accuracies(served) for row, served in made.items()},
        "seen": sorted(clients.training),
        "kib": {way: fmean(sizes) / 1024 for way, sizes in line.moved.items()},
        "error": fmean(line.errors),
    }


def main(
    coding: Annotated[list[str] | None, typer.Option(help="codings to run; all by default")] = None,
    seed: Seeds = None,
    override: Overrides = None,
    to: Target = RESULT,
) -> None:
    """Make the runs that are missing, seeds outermost, and print the table."""
    study, values = Study(to), given(override)
    points = product(seed or SEEDS, coding or CODINGS)
    for point in study.missing({"coding": name, "seed": number} for number, name in points):
        config = configured(SETTING, point["seed"], values)
        study.add(point, {"config": described(config), **measured(config, CODINGS[point["coding"]])})
    study.say(wire_deltas_table(study.runs))


def wire_deltas_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a markdown table: KiB, error and accuracies by coding, and differences to float32.

    Args:
        runs: of :func:`main`'s file.
    """
    rows = {}
    for name in CODINGS:
        own = [run for run in runs if run["coding"] == name]
        if own:
            kib = [f"{fmean(run['kib'][way] for run in own):.1f}" for way in ("down", "up")]
            error = f"{100 * fmean(run['error'] for run in own):.2g} %"
            rows[name] = [*kib, error, *(_told(runs, own, row, group) for row in ROWS for group in GROUPS)]
    accuracies = [f"{row}, {group}" for row in ROWS for group in GROUPS]
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    note = (
        f"Percent as received, in brackets the paired difference to float32 with its 95 % interval (bootstrap over "
        f"seeds and clients); PACS, {SETTING}; seeds {seeds}; made at commit {commits}."
    )
    return markdown("numbers", ["KiB down", "KiB up", "error of the mean change", *accuracies], rows) + "\n\n" + note


def _told(runs: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]], row: str, group: str) -> str:
    mine = [{**run, "row": run["rows"][row]} for run in own]
    seeds = {run["seed"] for run in own}
    reference = [run for run in runs if run["coding"] == REFERENCE and run["seed"] in seeds]
    others = [{**run, "row": run["rows"][row]} for run in reference]
    known = mean_of(mine, group)
    return known if own[0]["coding"] == REFERENCE or not others else f"{known} ({difference(mine, others, group)})"


if __name__ == "__main__":
    typer.run(main)
