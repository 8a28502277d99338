"""``python -m benchmarks.language``: federations of a causal language model, by their clients' loss per token.

FDU-MTL's reviews of 16 domains. Every other domain in alphabetical order is text that a small Llama is trained on
(:mod:`benchmarks.language_model`); the other eight are a federation's, three clients of each, one of which never
trains. A client completes reviews from their first words. The learning rate, of rounds and of use, is the one of
``RATES`` that gave FedIT's training clients the lowest validation loss on seed 0, as received and after K steps taken
together; all rows have it.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from datasets import Dataset
from rich.console import Console

from benchmarks.head_parts import finished_run
from benchmarks.language_model import KNOWN, Size, make_model
from benchmarks.language_table import FIGURES, REFERENCE, RESULT, chosen_rate, language_table
from benchmarks.result import MACHINE_KEYS, current_commit, write_json
from benchmarks.suite import Job
from hyperlora.cli.settings import parse_override
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.storage.files import write_text

PROMPT_WORDS, STEPS = 4, 10
RATES = (1e-3, 3e-3, 1e-2)
BASE: Mapping[str, Scalar] = {
    "data.name": "instructions",
    "data.partition": "iid",
    "data.clients-per-domain": 3,
    "data.unseen-fraction": 0.34,
    "data.max-samples": 150,
    "data.validation-fraction": 0.1,
    "data.test-fraction": 0.2,
    "model.name": "hf:small-llama",
    "model.max-length": 48,
    "lora.rank": 8,
    "lora.alpha": 16.0,
    "lora.last-blocks": 2,
    "train.local-steps": STEPS,
    "train.batch-size": 8,
    "federation.rounds": 10,
    "federation.clients-per-round": 6,
    "federation.evaluate-every": 10,
}
UNTRAINED: Mapping[str, Scalar] = {
    "method": "fedit",
    "train.local-steps": 0,
    "train.adapt-steps": STEPS,
    "federation.rounds": 1,
}
ROWS: Mapping[str, Mapping[str, Scalar]] = {
    REFERENCE: {"method": "fedit"},
    "hyperlora": {"method": "hyperlora"},
    "hyperlora, deviations in rounds": {"method": "hyperlora", "hyperlora.deviations": "rounds"},
    "hyperlora, deviations at use": {"method": "hyperlora", "hyperlora.deviations": "serving"},
    "hyperlora, deviations alike for all": {
        "method": "hyperlora",
        "hyperlora.deviations": "rounds",
        "hyperlora.temperature": 1000.0,
        "generator.kind": "off",
    },
    "local": {"method": "local"},
    "no federation": UNTRAINED,
}
console = Console()


class Review(NamedTuple):
    """A review: the kind of thing that it is about, its place in the set's own division, and its text."""

    domain: str
    split: str
    text: str


def main(
    data: Annotated[Path, typer.Option(help="folder of FDU-MTL's parquet files")],
    model: Annotated[Path, typer.Option(help="folder of the model; it is trained where there is none")],
    row: Annotated[list[str] | None, typer.Option(help="rows to run; all by default")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="development seeds; 0, 1, 2 by default")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for every run")] = None,
    to: Annotated[Path, typer.Option(help="json file; what is in it is not run again")] = RESULT,
) -> None:
    """Train the model unless it is there, make the runs that are missing, and print the tables."""
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="hyperlora-language-") as scratch:
        reviews = read_reviews(data, Path(scratch))
        known = reviewed_model(model, reviews)
        places: dict[str, Scalar] = {
            "data.path": str(write_federation(reviews, Path(scratch))),
            "model.weights": str(model.absolute()),
        }
        given = {**places, **dict(map(parse_override, override or []))}
        runs: list[Any] = json.loads(to.read_text(encoding="utf-8"))["runs"] if to.exists() else []
        for job in jobs(runs, row or list(ROWS), seed or [0, 1, 2], given):
            runs.append({**measured(job, Path(scratch)), "model": known})
            write_json(to, {"runs": runs})
            console.print(f"{job.name} at {job.config.train.learning_rate}: {runs[-1]['seconds']:.0f} s")
    console.print(language_table(runs), soft_wrap=True)


def read_reviews(data: Path, scratch: Path) -> list[Review]:
    """Return all reviews in the order of the files."""
    table = Dataset.from_parquet([str(file) for file in sorted(data.glob("*.parquet"))], cache_dir=str(scratch))
    return [Review(*row) for row in zip(table["domain"], table["split"], table["text"], strict=True)]


def halves(domains: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the domains that the model learns from, first, third, ... in alphabetical order, and the federation's."""
    ordered = sorted(set(domains))
    return ordered[::2], ordered[1::2]


def reviewed_model(folder: Path, reviews: Sequence[Review]) -> dict[str, Any]:
    """Return what the model in a folder knows; it is trained first where there is none.

    Raises:
        BadParameter: the folder has a model that was not trained here, so that nothing is known of it.
    """
    if not (folder / KNOWN).exists():
        if (folder / "config.json").exists():
            raise typer.BadParameter(f"'{folder}' has a model without {KNOWN}, so not of this benchmark; empty it")
        own, _ = halves(one.domain for one in reviews)
        read = [one.text for one in reviews if one.domain in own and one.split != "test"]
        held_out = [one.text for one in reviews if one.domain in own and one.split == "test"]
        make_model(folder, read, held_out, Size(), console.print)
    return dict(json.loads((folder / KNOWN).read_text(encoding="utf-8")))


def write_federation(reviews: Sequence[Review], folder: Path) -> Path:
    """Write all reviews of the federation's domains as prompts with responses, and return the file.

    A review that has no more words than a prompt is left out.
    """
    _, own = halves(one.domain for one in reviews)
    chosen = sorted((one for one in reviews if one.domain in own), key=lambda one: (one.domain, one.split))
    rows = [
        {"prompt": " ".join(words[:PROMPT_WORDS]), "response": " ".join(words[PROMPT_WORDS:]), "domain": one.domain}
        for one in chosen
        if len(words := one.text.split()) > PROMPT_WORDS
    ]
    write_text(folder / "federation.jsonl", "".join(json.dumps(row) + "\n" for row in rows), durable=False)
    return folder / "federation.jsonl"


def jobs(
    runs: Sequence[Mapping[str, Any]], rows: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Scalar]
) -> Iterator[Job]:
    """Yield the runs that are missing, those that choose the learning rate first.

    Args:
        runs: those that are there; looked at again after every run that was made, so they may grow meanwhile.
        rows, seeds: what is wanted.
        overrides: configuration keys that are set for every run.
    """
    for rate in RATES:
        yield from _missing(runs, REFERENCE, 0, rate, overrides)
    for seed in seeds:
        for name in rows:
            yield from _missing(runs, name, seed, chosen_rate(runs), overrides)


def _missing(
    runs: Sequence[Mapping[str, Any]], name: str, seed: int, rate: float, overrides: Mapping[str, Scalar]
) -> Iterator[Job]:
    if (name, seed, rate) not in {(run["row"], run["seed"], run["rate"]) for run in runs}:
        values = {**BASE, **ROWS[name], "train.learning-rate": rate, **overrides, "seed": seed}
        yield Job("language", name, RunConfig.parse(values))


def measured(job: Job, scratch: Path) -> dict[str, Any]:
    """Make a run and return every client's losses per token, of its test and of its validation share."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        scores = finished_run(job.config, Path(folder) / "run").scores
    return {
        "row": job.variant,
        "seed": job.config.seed,
        "rate": job.config.train.learning_rate,
        "commit": current_commit(),
        "seconds": time.perf_counter() - began,
        "config": {key: value for key, value in job.config.flat().items() if key not in MACHINE_KEYS},
        "clients": [losses(score) for score in scores if score["track"] == START_TRACK],
    }


def losses(score: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a client's scores who it is, and its losses in nats per token as received and after K steps."""
    by_steps = list(score["loss_by_steps"].values())
    named = {key: score[key] for key in ("client_id", "domain", "seen", "track")}
    validation = {f"{key}_validation": score[f"{key}_validation_loss"] for key in FIGURES.values()}
    return {**named, **dict(zip(FIGURES.values(), (by_steps[0], by_steps[-1]), strict=True)), **validation}


if __name__ == "__main__":
    typer.run(main)
