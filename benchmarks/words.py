"""``python -m benchmarks.words``: what is a description worth to a client that sends no sample?

HyperLoRA is run with development seeds on FDU-MTL and CLINC150 under a frozen MiniLM. From the last state of each run
its newcomers are served again, by what they say of themselves: class statistics, a signature, a sentence
(``benchmarks/descriptions.toml``), the name of their domain, names of classes, or nothing. Nothing is trained again, so
differences are paired by client and seed. Some domains of FDU-MTL are left out of a run, for newcomers from elsewhere.
"""

from __future__ import annotations

import functools
import json
import logging
import random
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from rich.console import Console
from torch import Tensor

from benchmarks.amortisation import accuracy_of, features_of, last_state
from benchmarks.bootstrap import paired_difference
from benchmarks.personalize import make_run
from benchmarks.result import current_commit, write_json
from benchmarks.table import markdown
from client_app.runtime import ClientRuntime, open_runtime
from client_app.tasks import describe_clients
from hyperlora.from_words import Description, read, readable, understand
from hyperlora.messages.evaluate import START_TRACK
from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.run_files import RunFiles
from hyperlora.seeds import derive_seed
from hyperlora.storage.run_names import EVALUATION
from models.adapters.adapted_model import AdaptedModel
from models.personalization.class_statistics import compute_class_statistics
from models.personalization.described import told_frequencies
from models.personalization.prior import add_prior
from models.personalization.signature import Signature
from models.personalization.similarity import signature_vector
from strategies.methods.hyperlora.config import HyperLoraSettings
from strategies.methods.hyperlora.heads import with_heads
from strategies.methods.hyperlora.state import HyperLoraState

HERE = Path(__file__).parent
RESULT = HERE / "results" / "words.json"
NOTHING = "nothing: the anchor"
PAIRS = (
    ("sentence and shares of classes", "class statistics and signature"),
    ("sentence and class names", "class names"),
    ("sentence and class names", "another domain's sentence, own class names"),
    ("sentence and class names", "signature, its frequencies as classes are listed"),
)
console = Console()


@dataclass(frozen=True)
class Setting:
    """A run: data set (a heading of descriptions.toml), preset, values, domains that the run knows nothing of."""

    data: str
    preset: str
    values: Mapping[str, str]
    left_out: int = 0


UNADAPTED = {"train.adapt-steps": "0", "federation.evaluate-steps": '""'}
SHORT = {"federation.rounds": "4", "federation.evaluate-every": "4", **UNADAPTED}
REVIEWS = {"train.learning-rate": "0.001", **SHORT}
REQUESTS = {
    "data.clients-per-domain": "6",
    "data.unseen-fraction": "0.34",
    "data.max-samples": "40",
    "federation.clients-per-round": "8",
    "train.local-steps": "5",
    "train.batch-size": "8",
    **SHORT,
}
SETTINGS = (Setting("FDU-MTL", "fdu_mtl", REVIEWS, left_out=4), Setting("CLINC150", "clinc", REQUESTS))


@dataclass(frozen=True)
class Newcomer:
    """A client that is served: its card, and features and labels of its training and test samples."""

    card: ClientCard
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def shares(self, classes: int) -> Tensor:
        """Return what share of its training samples is of each class, (C,)."""
        return self.train[1].bincount(minlength=classes) / len(self.train[1])


@dataclass(frozen=True)
class Scene:
    """The last state of a run, the cards of the clients that trained, the newcomers, and who reads texts."""

    state: HyperLoraState
    known: Mapping[str, ClientCard]
    newcomers: Sequence[Newcomer]
    class_names: Sequence[str]
    read_texts: Callable[[Sequence[str]], Tensor]
    sentences: Mapping[str, str]
    smoothing: float
    prior: float
    rank: int

    def described(self, words: str, shares: Tensor | None) -> Signature:
        """Return the signature that follows from a description, in words and shares of classes (C,)."""
        pairs = zip(self.class_names, [] if shares is None else shares.tolist(), strict=shares is not None)
        said = Description(words, {name: share for name, share in pairs if share})
        return understand(said, self.known, self.class_names, self.read_texts, self.smoothing).signature

    def told(self, one: Newcomer) -> dict[str, Signature | None]:
        """Return by what a newcomer says the signature that it is served by; None where all it has is the anchor."""
        sentence, other = self.sentences[one.card.domain], self.sentences[self.other_domain(one.card.domain)]
        own, domain, shares = one.card.signature, readable(one.card.domain), one.shares(len(self.class_names))
        listed = (shares > 0).float()
        evenly = told_frequencies(listed, len(one.train[1]), self.smoothing)
        return {
            "class statistics and signature": own,
            "signature": own,
            "signature, its frequencies as classes are listed": replace(own, class_frequencies=evenly),
            "sentence and shares of classes": self.described(sentence, shares),
            "sentence and class names": self.described(sentence, listed),
            "name of the domain and class names": self.described(domain, listed),
            "class names": self.described("", listed),
            "another domain's sentence, own class names": self.described(other, listed),
            "sentence": self.described(sentence, None),
            "name of the domain": self.described(domain, None),
            NOTHING: None,
        }

    def other_domain(self, domain: str) -> str:
        """Return another domain than a newcomer's, the same for all of its clients."""
        return random.Random(derive_seed("another", domain)).choice(sorted(set(self.sentences) - {domain}))

    def accuracies(self, *, new_domains: bool) -> dict[str, list[dict[str, Any]]]:
        """Return by what they say the accuracies, as received, of newcomers from domains known to the run, or new."""
        domains = {card.domain for card in self.known.values()}
        rows: dict[str, list[dict[str, Any]]] = {}
        for one in self.newcomers:
            if (one.card.domain in domains) == new_domains:
                continue
            for name, signature in self.told(one).items():
                row = {"client_id": one.card.client_id, "seen": False, "track": START_TRACK}
                score = self.accuracy(one, signature, with_statistics="statistics" in name)
                rows.setdefault(name, []).append({**row, "zero_step": score})
        return rows

    def accuracy(self, one: Newcomer, signature: Signature | None, *, with_statistics: bool) -> float:
        """Return the test accuracy of a newcomer that is served by a signature; None serves the anchor."""
        anchor, name = self.state.served_anchor, one.card.client_id
        if signature is None:
            return accuracy_of(anchor, *one.test)
        statistics = {known: told for known, told in self.state.class_statistics.items() if known in self.known}
        if with_statistics:
            own = compute_class_statistics(*one.train, num_classes=len(self.class_names), rank=self.rank)
            statistics[name] = own
        vectors = {**self.state.signature_vectors, name: signature_vector(signature)}
        state = replace(self.state, signature_vectors=vectors, class_statistics=statistics)
        vars(state)["head_generator"] = self.state.head_generator
        card = replace(one.card, signature=signature)
        (start,) = with_heads(state, [card], [anchor], self.prior)
        return accuracy_of(add_prior(start, signature.class_frequencies, self.prior), *one.test)


def open_scene(run: RunFiles, setting: Setting, data: Path) -> Scene:
    """Return the scene of a finished run; its newcomers are all clients of the data that it did not train."""
    state, cards = last_state(run), run.require_clients().cards
    runtime = open_runtime(run.config.with_values({"data.path": str(data)}))
    known = {name: card for name, card in cards.items() if card.trains}
    newcomers = describe_clients(runtime, [name for name in runtime.federation.client_ids if name not in known]).cards
    sentences = tomllib.loads((HERE / "descriptions.toml").read_text(encoding="utf-8"))[setting.data]
    runtime.model.load(state.served_anchor)
    return Scene(
        state,
        known,
        [_newcomer(runtime, card) for card in newcomers],
        runtime.federation.class_names,
        reader(runtime.model),
        sentences,
        run.config.signature.smoothing,
        run.config.prior_strength,
        run.config.of(HyperLoraSettings).statistics_rank,
    )


def reader(model: AdaptedModel) -> Callable[[Sequence[str]], Tensor]:
    """Return what embeds texts, each of them once."""
    one = functools.cache(lambda text: read(model, [text])[0])
    return lambda texts: torch.stack([one(text) for text in texts])


def _newcomer(runtime: ClientRuntime, card: ClientCard) -> Newcomer:
    return Newcomer(card, *(features_of(runtime, card.client_id, split) for split in ("train", "test")))


def scored(setting: Setting, seed: int, data: Path, overrides: Sequence[str], place: Path) -> list[dict[str, Any]]:
    """Make a run in ``place``, unless it is there, and return by what they say the accuracies of its newcomers."""
    if not (place / "run" / EVALUATION).exists():
        place.mkdir(parents=True, exist_ok=True)
        path = without_domains(data, setting.left_out, seed, place) if setting.left_out else data
        values = {**setting.values, "seed": str(seed), "data.name": '"parquet"', "data.path": f'"{path}"'}
        given = [*(f"{key}={value}" for key, value in values.items()), *overrides]
        make_run(setting.preset, given, place / "run")
    scene = open_scene(RunFiles.open(place / "run"), setting, data)
    groups = {setting.data: False, **({f"{setting.data}, new domains": True} if setting.left_out else {})}
    shown = {"head_share": scene.state.head_share, "head_scale": scene.state.head_scale}
    return [
        {"setting": title, "seed": seed, **shown, "parts": scene.accuracies(new_domains=new)}
        for title, new in groups.items()
    ]


def without_domains(data: Path, count: int, seed: int, folder: Path) -> Path:
    """Write the rows of all but ``count`` domains, drawn by the seed, to a parquet file and return it."""
    table = Dataset.from_parquet([str(file) for file in sorted(data.glob("*.parquet"))], cache_dir=str(folder))
    gone = random.Random(derive_seed("left out", seed)).sample(sorted(set(table["domain"])), count)
    kept = [row for row, domain in enumerate(table["domain"]) if domain not in gone]
    table.select(kept).to_parquet(folder / "known.parquet")
    return folder / "known.parquet"


def words_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return two markdown tables: accuracy by what newcomers say, beside saying nothing; and what is worth what.

    Args:
        runs: of :func:`main`'s file; settings stand side by side.
    """
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        settings.setdefault(run["setting"], []).append(run)
    rows = {
        part: [cell for found in settings.values() for cell in _cells(found, part)]
        for part in dict.fromkeys(part for run in runs for part in run["parts"])
    }
    titles = [title for name in settings for title in (f"{name} (%)", "minus nothing")]
    pairs = {
        f"{part} minus {other}": [str(difference_of(found, part, other)) for found in settings.values()]
        for part, other in PAIRS
        if {part, other} <= rows.keys()
    }
    tables = [markdown("what a newcomer says", titles, rows)]
    return "\n\n".join([*tables, markdown("points", list(settings), pairs)] if pairs else tables)


def _cells(runs: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    means = [sum(one["zero_step"] for one in run["parts"][part]) / len(run["parts"][part]) for run in runs]
    difference = difference_of(runs, part, NOTHING) if part != NOTHING else ""
    return [f"{100 * sum(means) / len(means):.1f}", str(difference or "")]


def difference_of(runs: Sequence[Mapping[str, Any]], part: str, other: str) -> Any:
    """Return how far newcomers that say one thing are above those that say another, with the interval."""

    def made(name: str) -> list[dict[str, Any]]:
        return [{"seed": run["seed"], "clients": run["parts"][name]} for run in runs]

    return paired_difference(made(part), made(other), "unseen", ("zero_step", "zero_step"))


def main(
    data: Annotated[Path, typer.Option(help="folder with the folders fdu_mtl and clinc150 of parquet files")],
    weights: Annotated[Path, typer.Option(help="directory of MiniLM's weights")],
    seed: Annotated[list[int] | None, typer.Option(help="development seeds; 0, 1, 2 by default")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for every run")] = None,
    keep: Annotated[Path | None, typer.Option(help="folder where runs are kept, and taken from")] = None,
    to: Annotated[Path, typer.Option(help="json file; what is in it is not run again")] = RESULT,
) -> None:
    """Make the runs that are missing, serve their newcomers by what they say, and print the table."""
    logging.basicConfig(level=logging.WARNING)
    found: dict[str, Any] = json.loads(to.read_text(encoding="utf-8")) if to.exists() else {"runs": []}
    there = {(run["setting"], run["seed"]) for run in found["runs"]}
    given = [f'model.weights="{weights.absolute()}"', *(override or [])]
    with tempfile.TemporaryDirectory(prefix="hyperlora-words-") as scratch:
        for setting in SETTINGS:
            folder = data.absolute() / setting.data.lower().replace("-", "_")
            for number in seed or [0, 1, 2]:
                if (setting.data, number) not in there:
                    place = (keep or Path(scratch)) / f"{setting.data}-{number}"
                    found["runs"] += scored(setting, number, folder, given, place)
                    write_json(to, {"commit": current_commit(), "runs": found["runs"]})
                    console.print(f"{setting.data}, seed {number}: done")
    console.print(words_table(found["runs"]), soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
