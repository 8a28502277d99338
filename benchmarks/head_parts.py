"""``python -m benchmarks.head_parts``: what is each part of a generated head worth, to seen and to unseen clients?

HyperLoRA is run on a suite's settings with development seeds. At the end of each run all clients are served again from
its state with one part changed, and scored on their own test samples, as received. Nothing is trained again, so that
differences are of the head alone, paired by client and seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer

from benchmarks.amortisation import accuracy_of, features_of, last_state, shuffled
from benchmarks.bootstrap import paired_difference
from benchmarks.local_grid import LocalGrid
from benchmarks.run_job import NODES, require_all_clients
from benchmarks.study import SEEDS, Overrides, Seeds, Study, Target, given
from benchmarks.suite import Job, load_jobs
from benchmarks.table import markdown
from client_app.runtime import open_runtime
from hyperlora.config.schema import RunConfig
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.reporting.run_files import RunFiles
from models.personalization import head_generator
from models.personalization.class_means import Variances
from models.personalization.prior import add_prior
from models.personalization.within_class import WithinClass
from strategies.methods.hyperlora.heads import with_heads
from strategies.methods.hyperlora.state import HyperLoraState

RESULT = Path(__file__).parent / "results" / "head_parts.json"
WHOLE = "as it is"
ALIKE = Variances(client=0.0, single=1e-6, length=1.0)
"""Under which the classes of all clients look the same."""


def unfitted(state: HyperLoraState) -> HyperLoraState:
    """Return the state with nothing kept of what was fitted to class statistics."""
    return replace(state, class_statistics=dict(state.class_statistics))


def one_mean() -> AbstractContextManager[Any]:
    """Have the classes of all clients look the same while heads are fitted."""
    return patch.object(head_generator, "likeliest", lambda observed, distances: ALIKE)


def one_covariance() -> AbstractContextManager[Any]:
    """Have samples spread alike at all clients while heads are fitted."""
    fit = staticmethod(lambda statistics, turn, ridge, distances: WithinClass(statistics, turn, ridge))
    return patch.object(WithinClass, "fit", fit)


Part = tuple[Callable[[HyperLoraState], HyperLoraState], Callable[[], AbstractContextManager[Any]]]
PARTS: Mapping[str, Part] = {
    WHOLE: (unfitted, nullcontext),
    "the anchor's head for all": (lambda state: replace(state, head_share=0.0), nullcontext),
    "the generated head alone": (lambda state: replace(state, head_share=1.0), nullcontext),
    "share and scale by hand, a half each": (
        lambda state: replace(state, head_share=0.5, head_scale=0.5),
        nullcontext,
    ),
    "one mean of a class for all": (unfitted, one_mean),
    "one covariance within classes for all": (unfitted, one_covariance),
    "signatures shuffled": (shuffled, nullcontext),
}


def main(
    suite: Annotated[str, typer.Option(help="whose settings are run")] = "pacs",
    seed: Seeds = None,
    override: Overrides = None,
    to: Target = RESULT,
) -> None:
    """Make the runs that are missing, serve their clients without one part at a time, and print the table."""
    study, jobs = Study(to), load_jobs(suite, given(override), list(seed or SEEDS), ["hyperlora"])
    wanted = {(job.suite, job.config.seed): job for job in jobs}
    for point in study.missing({"setting": setting, "seed": number} for setting, number in wanted):
        study.add(point, {"parts": scored_run(wanted[point["setting"], point["seed"]])})
    study.say(head_parts_table(study.runs))


def scored_run(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Make a run and return, by part, every client's scores with it."""
    with tempfile.TemporaryDirectory(prefix="hyperlora-head-parts-") as scratch:
        return scores(finished_run(job.config, Path(scratch) / "run"))


def finished_run(config: RunConfig, directory: Path) -> RunFiles:
    """Make a run in this process; raises RuntimeError where a client was left out of a round."""
    from client_app.app import app
    from server_app.run import run

    values = {**config.flat(), "run.output-dir": str(directory)}
    files = RunFiles.open(run(LocalGrid(app, values, NODES, remembers=False), values))
    require_all_clients(files.records)
    return files


def scores(run: RunFiles) -> dict[str, list[dict[str, Any]]]:
    """Return, by part, the accuracy as received of every client of a finished run.

    Raises:
        BadParameter: the run has no checkpoint of HyperLoRA with class statistics.
    """
    state, runtime, prior = last_state(run), open_runtime(run.config), run.config.prior_strength
    cards = [card for _, card in sorted(run.require_clients().cards.items())]
    runtime.model.load(state.served_anchor)
    tests = [features_of(runtime, card.client_id, "test") for card in cards]
    told: dict[str, list[dict[str, Any]]] = {}
    for name, (change, during) in PARTS.items():
        with during():
            starts = with_heads(change(state), cards, [state.served_anchor] * len(cards), prior)
        served = [
            add_prior(start, card.signature.class_frequencies, prior) for start, card in zip(starts, cards, strict=True)
        ]
        told[name] = [
            {
                "client_id": card.client_id,
                "seen": card.trains,
                "track": START_TRACK,
                "zero_step": accuracy_of(own, *test),
            }
            for card, own, test in zip(cards, served, tests, strict=True)
        ]
    return told


def head_parts_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a markdown table: what a changed part costs or gains, in points with 95 % intervals.

    Args:
        runs: of :func:`main`'s file; their settings stand side by side, and where there are several all of them
            together, each run then a seed of its own.
    """
    settings = dict.fromkeys(run["setting"] for run in runs)
    wanted = {name.rpartition("/")[2]: [run for run in runs if run["setting"] == name] for name in settings}
    if len(wanted) > 1:
        wanted["all"] = list(runs)
    groups = [(name, group) for name in wanted for group in ("seen", "unseen")]
    rows = {part: [_change(wanted[name], part, group) for name, group in groups] for part in PARTS if part != WHOLE}
    return markdown("in place of what it is", [", ".join(one) for one in groups], rows)


def _change(runs: Sequence[Mapping[str, Any]], part: str, group: str) -> str:
    def made(name: str) -> list[dict[str, Any]]:
        return [{"seed": (run["setting"], run["seed"]), "clients": run["parts"][name]} for run in runs]

    found = paired_difference(made(part), made(WHOLE), group, ("zero_step", "zero_step"))
    return str(found) if found else ""


if __name__ == "__main__":
    typer.run(main)
