"""``python -m benchmarks.controls``: is HyperLoRA ahead by what every method could be given?

HyperLoRA's heads have a class prior that is fitted to the counts of all clients and weighs twice, beside halved logits,
and its clients share a running average of anchors. Here the clients of rivals score what a run ends with again, with
the same prior and with heads that each fits to its own samples by itself (:mod:`models.sums.own_head`). HyperLoRA's
clients do the same with its anchor, which leaves what generated heads are worth beyond both, and fit heads of their own
around the generated ones. HyperLoRA without the running average is an entry of its own.

Settings and report seeds are those of the suite; no number is chosen here.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from flwr.app import Context, Message
from torch import Tensor

from benchmarks.adapting import App
from benchmarks.bootstrap import paired_difference
from benchmarks.local_grid import LocalGrid
from benchmarks.run_job import NODES, require_all_clients
from benchmarks.study import Overrides, Seeds, Study, Target, given
from benchmarks.suite import Job, load_jobs
from benchmarks.table import markdown
from client_app.handlers import ContextKeeper
from client_app.runtime import ClientRuntime, open_runtime
from client_app.tasks import Keeper, core_of, evaluate_adapter
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.batch import EvaluateBatch
from hyperlora.messages.evaluate import START_TRACK, EvaluateRequest
from hyperlora.reporting.run_files import RunFiles
from models.adapters.adapter import Adapter
from models.personalization.head_generator import pseudo_counts
from models.sums.own_head import own_head
from strategies.methods.hyperlora.config import HyperLoraSettings

RESULT = Path(__file__).parent / "results" / "controls.json"
SEEDS, OURS, ANCHOR = (10, 11, 12), "hyperlora", "anchor"
PRIOR, OWN_HEAD, BOTH = "fitted prior", "own head", "fitted prior, own head"


@dataclass(frozen=True)
class Entry:
    """A variant of the suite, what its settings are changed to, and whether its clients score other heads as well."""

    variant: str
    changes: Mapping[str, Scalar] = field(default_factory=dict)
    other_heads: bool = True


ENTRIES = {
    OURS: Entry(OURS),
    "hyperlora, newest anchor": Entry(OURS, {"hyperlora.averaging": 1.0}, other_heads=False),
    "fedit": Entry("fedit"),
    "fed-sb": Entry("fed-sb"),
}
Scores = list[dict[str, Any]]


@dataclass
class ControlledApp:
    """A ClientApp whose clients, asked to evaluate in the last round, also score what they are sent with other heads.

    Attributes:
        app: the app that answers.
        config: of the run.
        rows: by track whose adapter is given other heads, the name of its row.
        scores: by row the scores of all clients; filled by the run.
    """

    app: App
    config: RunConfig
    rows: Mapping[str, str]
    scores: dict[str, Scores] = field(default_factory=dict)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the app does; what is scored besides changes neither the reply nor what the client keeps."""
        reply = self.app(message, context)
        if message.metadata.message_type == EvaluateBatch.TYPE and not reply.has_error():
            fresh = self._runtime.model.fresh_adapter(self.config.seed)
            for request in EvaluateBatch.decode(message.content, fresh).requests:
                last = request.server_round == self.config.federation.rounds
                if last and request.track in self.rows and not request.validation_only:
                    self._score(request, ContextKeeper(context))
        return reply

    @functools.cached_property
    def _runtime(self) -> ClientRuntime:
        return open_runtime(self.config)

    @functools.cached_property
    def _expected(self) -> Tensor:
        """Pseudo-counts (C,) of the class counts of the clients that train, as HyperLoRA's server fits them."""
        names = [name for name in self._runtime.federation.client_ids if self._runtime.client(name).trains]
        return pseudo_counts(torch.stack([counts_of(self._runtime, name) for name in names]))

    def _score(self, request: EvaluateRequest, keeper: Keeper) -> None:
        """Score the adapter with HyperLoRA's prior, and with the client's own head under either prior.

        An own head is what a client does in place of local steps, so that both of its figures are the same. Heads that
        HyperLoRA generated have its prior already.
        """
        runtime, name, head = self._runtime, request.client_id, request.start.adapter.head
        smoothed = self.config.prior_strength * runtime.frequencies(name).log()
        samples = train_features(runtime, request)
        heads = {OWN_HEAD: own_head(plus_bias(head, smoothed), *samples)}
        if self.rows[request.track] != OURS:
            counts = counts_of(runtime, name) + self._expected
            prior = self.config.prior_strength * torch.log(counts / counts.sum())
            heads[PRIOR] = plus_bias(self.config.of(HyperLoraSettings).head_scale * head, prior)
            heads[BOTH] = own_head(heads[PRIOR], *samples)
        for what, one in heads.items():
            row, steps = f"{self.rows[request.track]}, {what}", request.steps if what == PRIOR else [0]
            start = Adapter(request.start.adapter.low_rank, plus_bias(one, -smoothed))
            self.scores.setdefault(row, []).append(self._scored(request, start, steps, keeper))

    def _scored(
        self, request: EvaluateRequest, adapter: Adapter, steps: Sequence[int], keeper: Keeper
    ) -> dict[str, Any]:
        asked = replace(request, start=replace(request.start, adapter=adapter), steps=steps)
        accuracy = evaluate_adapter(self._runtime, asked, keeper).test_accuracy
        return {
            "client_id": request.client_id,
            "seen": self._runtime.client(request.client_id).trains,
            "track": START_TRACK,
            "zero_step": accuracy[0],
            "k_step": accuracy[-1],
        }


def counts_of(runtime: ClientRuntime, name: str) -> Tensor:
    """Return how many training samples of each class a client has, (C,)."""
    return torch.bincount(runtime.client(name).train.labels, minlength=len(runtime.federation.class_names)).float()


def plus_bias(head: Tensor, bias: Tensor) -> Tensor:
    """Return a head (C, d + 1) with ``bias`` (C,) added to its last column."""
    return torch.cat([head[:, :-1], head[:, -1:] + bias[:, None]], dim=1)


def train_features(runtime: ClientRuntime, request: EvaluateRequest) -> tuple[Tensor, Tensor]:
    """Return features (n, d) and labels (n,) of a client's training samples with the adapter that it is sent."""
    plan, model, train = request.start.plan, runtime.model, runtime.tokens(request.client_id, "train")
    if plan.personal:
        raise typer.BadParameter("only methods whose clients use what they are sent can be given other heads here")
    model.load(request.start.adapter)
    with model.prepared(plan.trains, core_of(plan), plan.base):
        features = [model.features(train.tokens[batch].to(model.device)).cpu() for batch in train.batches()]
    return torch.cat(features), train.labels


def main(
    suite: Annotated[str, typer.Option(help="whose settings are run")] = "pacs",
    entry: Annotated[list[str] | None, typer.Option(help="rows that are run; all by default")] = None,
    seed: Seeds = None,
    override: Overrides = None,
    to: Target = RESULT,
) -> None:
    """Make the runs that are missing, score their clients with what HyperLoRA's clients have, and print the table."""
    study, chosen = Study(to), entry or list(ENTRIES)
    if unknown := set(chosen) - set(ENTRIES):
        raise typer.BadParameter(f"there is no row {sorted(unknown)}; there are {', '.join(ENTRIES)}")
    variants = list(dict.fromkeys(ENTRIES[one].variant for one in chosen))
    jobs = load_jobs(suite, given(override), list(seed or SEEDS), variants)
    wanted = {(job.suite, job.config.seed, job.variant): job for job in jobs}
    settings = list(dict.fromkeys((job.suite, job.config.seed) for job in jobs))
    points = [{"setting": place, "seed": number, "entry": one} for place, number in settings for one in chosen]
    for point in study.missing(points):
        job = wanted[point["setting"], point["seed"], ENTRIES[point["entry"]].variant]
        study.add(point, {"rows": scored_run(job, point["entry"])})
    study.say(controls_table(study.runs))


def scored_run(job: Job, entry: str) -> dict[str, Scores]:
    """Make a run and return, by row of the table, every client's scores."""
    from client_app.app import app
    from server_app.run import run

    config = job.config.with_values(ENTRIES[entry].changes)
    tracks = {START_TRACK: entry}
    if entry == OURS:
        tracks[ANCHOR] = f"{entry}, anchor's head"
    controlled = ControlledApp(app, config, tracks if ENTRIES[entry].other_heads else {})
    with tempfile.TemporaryDirectory(prefix="hyperlora-controls-") as scratch:
        values = {**config.flat(), "run.output-dir": str(Path(scratch) / "run"), "run.checkpoint-every": 0}
        files = RunFiles.open(run(LocalGrid(controlled, values, NODES, remembers=False), values))
        require_all_clients(files.records)
        found = {row: [one for one in files.scores if one["track"] == track] for track, row in tracks.items()}
    as_starts = {row: [{**one, "track": START_TRACK} for one in scores] for row, scores in found.items()}
    return {**as_starts, **controlled.scores}


def controls_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a markdown table: points of a row less HyperLoRA's as received, with 95 % intervals.

    Rows are of clients as received or, where local steps changed anything, adapted.

    Args:
        runs: of :func:`main`'s file; their settings stand side by side, and where there are several all of them
            together, each run then a seed of its own.
    """
    settings = dict.fromkeys(run["setting"] for run in runs)
    shown = {name.rpartition("/")[2]: by_row([run for run in runs if run["setting"] == name]) for name in settings}
    if len(shown) > 1:
        shown["all"] = by_row(runs)
    groups = [(name, group) for name in shown for group in ("seen", "unseen")]
    rows = {
        label: [_against_ours(shown[name], row, group, column) for name, group in groups]
        for label, row, column in _lines(by_row(runs))
    }
    return markdown(f"minus {OURS} as received", [", ".join(one) for one in groups], rows)


def _lines(found: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """Return the label, the row and the figure of every line."""
    lines = []
    for row, runs in found.items():
        if row != OURS:
            lines.append((row, row, "zero_step"))
        if any(one["k_step"] != one["zero_step"] for run in runs for one in run["clients"]):
            lines.append((f"{row}, adapted", row, "k_step"))
    return lines


def _against_ours(rows: Mapping[str, list[dict[str, Any]]], row: str, group: str, column: str) -> str:
    found = paired_difference(rows.get(row, []), rows.get(OURS, []), group, (column, "zero_step"))
    return str(found) if found else ""


def by_row(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return by row of the table its runs, each of a seed of its own, as :func:`paired_difference` takes them."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for name, scores in run["rows"].items():
            rows.setdefault(name, []).append({"seed": (run["setting"], run["seed"]), "clients": scores})
    return rows


if __name__ == "__main__":
    typer.run(main)
