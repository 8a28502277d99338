"""``python -m benchmarks.sum_movements``: how should the movement of the anchor reach a server that sees only sums?

dW_i = B_i A_i is not linear in its factors. Three ways to average it by sums alone: products with public matrices in
two sums, the second of which has the basis of the first (:mod:`benchmarks.product_average`); products from both sides
in one sum (Tropp et al. 2017, algorithm 4); or one sum of one factor, where clients train B in one round and A in the
next, which is the product's way with a step of 2 (:mod:`models.sums.shared_factor`). Everything after the anchor is as
in :mod:`benchmarks.sums`. Sums are taken without masks. Development seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.product_average import from_two_passes, orthonormal, right_basis, times_left, times_right
from benchmarks.study import SEEDS, Overrides, Seeds, Study, Target, given
from benchmarks.suite import HERE
from benchmarks.sums import GROUPS, configured, described, difference, mean_of
from benchmarks.sums_only import MOST, Clients, Evaluation, Move, Parts, anchor_from_sums, averaged, one_factor
from benchmarks.table import markdown
from client_app.runtime import open_runtime
from hyperlora.config.schema import RunConfig
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.lowrank.truncation import best_rank
from models.sums.shared_factor import STEP

RESULT = HERE / "results" / "sum-movements.json"
CHOSEN = ("Dirichlet 0.5", "120 clients")
HEAD = "head"


def two_sums(clients: Clients, initial: Adapter, anchor: Adapter, server_round: int) -> Adapter:
    """Average products with public matrices, the second with the basis that the first gave."""
    trained = clients.trained(anchor, server_round)
    right = right_basis(anchor, 2 * initial.rank, clients.config.seed, server_round)
    first = averaged(trained, lambda end: {**times_right(end, right), HEAD: end.head.double()})
    head = first.pop(HEAD).float()
    left = orthonormal(first)
    rows = averaged(trained, lambda end: times_left(end, left))
    return from_two_passes(left, rows, head, anchor.rank).aligned(anchor)


def one_sum(clients: Clients, initial: Adapter, anchor: Adapter, server_round: int) -> Adapter:
    """Average products from both sides, with 2 r columns from the right and 4 r from the left."""
    rank, seed = initial.rank, (clients.config.seed, server_round)
    right = right_basis(anchor, 2 * rank, *seed)
    mirrored = Adapter({kind: one.transposed() for kind, one in anchor.low_rank.items()}, anchor.head)
    left = right_basis(mirrored, 4 * rank, *seed, "left")

    def told(end: Adapter) -> Parts:
        columns = {f"columns {kind}": one for kind, one in times_right(end, right).items()}
        rows = {f"rows {kind}": one for kind, one in times_left(end, left).items()}
        return {**columns, **rows, HEAD: end.head.double()}

    sums = averaged(clients.trained(anchor, server_round), told)
    low_rank = {kind: of_sketches(sums, left[kind], kind, rank) for kind in left}
    return Adapter(low_rank, sums[HEAD].float()).aligned(anchor)


def of_sketches(sums: Parts, left: Tensor, kind: str, rank: int) -> Factors:
    """Return the best rank of Y (Psi^T Y)^+ (Psi^T dW), Y = dW Q."""
    Y = orthonormal({kind: sums[f"columns {kind}"]})[kind]
    core = torch.linalg.lstsq(left.mT @ Y, sums[f"rows {kind}"].mT).solution
    return best_rank(Factors(B=Y, A=core), rank).to(torch.float32)


REFERENCE = "two sums of products"
WAYS: Mapping[str, Move] = {
    REFERENCE: two_sums,
    "one sum of products": one_sum,
    "one factor in turn": one_factor(1.0),
    "one factor in turn, twice the step": one_factor(STEP),
}


def main(
    setting: Annotated[list[str] | None, typer.Option(help="settings to run; all by default")] = None,
    way: Annotated[list[str] | None, typer.Option(help="ways to run; all by default")] = None,
    seed: Seeds = None,
    override: Overrides = None,
    to: Target = RESULT,
) -> None:
    """Make the runs that are missing, seeds outermost, and print the tables."""
    study, values = Study(to), given(override)
    points = product(seed or SEEDS, setting or CHOSEN, way or WAYS)
    for point in study.missing({"setting": place, "way": name, "seed": number} for number, place, name in points):
        config = configured(point["setting"], point["seed"], values)
        row, seen = measured(config, WAYS[point["way"]])
        study.add(point, {"config": described(config), "row": row, "seen": seen})
    study.say(sum_movements_table(study.runs))


def measured(config: RunConfig, move: Move) -> tuple[dict[str, float], list[str]]:
    """Return the test accuracies of all clients as received, and who of them trains."""
    clients = Clients.of(open_runtime(config))
    there = Evaluation.of(clients, anchor_from_sums(clients, move))
    return there.accuracies(there.served(there.published(MOST))), sorted(clients.training)


def sum_movements_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a markdown table for each setting: accuracies as received, and differences to two sums of products.

    Args:
        runs: of :func:`main`'s file.
    """
    found = {place: [run for run in runs if run["setting"] == place] for place in CHOSEN}
    tables = [_table(place, own) for place, own in found.items() if own]
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    note = f"95 % intervals of a bootstrap over seeds and clients; made at commit {commits}."
    return "\n\n".join([*tables, f"Percent and points, as received; PACS; {note}"])


def _table(setting: str, runs: Sequence[Mapping[str, Any]]) -> str:
    reference, rows = {run["seed"]: run for run in runs if run["way"] == REFERENCE}, {}
    for way in WAYS:
        own = [run for run in runs if run["way"] == way and run["seed"] in reference]
        if own:
            others = [reference[run["seed"]] for run in own]
            apart = [difference(own, others, group) if way != REFERENCE else "" for group in GROUPS]
            seeds = ", ".join(str(run["seed"]) for run in own)
            rows[way] = [seeds, *(mean_of(own, group) for group in GROUPS), *apart]
    return markdown(setting, ["seeds", *GROUPS, *(f"{group}, minus two sums" for group in GROUPS)], rows)


if __name__ == "__main__":
    typer.run(main)
