"""``python -m benchmarks.amortisation``: what is a newcomer worth the class statistics of others, and its own?

A run of HyperLoRA is made (or named with ``--run``). At its last checkpoint unseen clients are served heads again: once
with the class statistics of fewer of the clients that train, once with fewer of their own samples behind theirs. The
anchor is that of all rounds throughout, so the curves are of the head generator alone. Subsets are drawn several times.
"""

from __future__ import annotations

import json
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from benchmarks.figures import PALETTE, save
from benchmarks.personalize import make_run
from benchmarks.result import current_commit, write_json
from client_app.runtime import ClientRuntime, open_runtime
from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.run_files import RunFiles
from hyperlora.reporting.state_view import open_checkpoint
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import compute_class_statistics
from models.personalization.prior import add_prior
from models.personalization.signature import class_frequencies
from strategies.methods.hyperlora.config import HyperLoraSettings
from strategies.methods.hyperlora.heads import with_heads
from strategies.methods.hyperlora.state import HyperLoraState

HERE = Path(__file__).parent
CLIENTS = (1, 2, 4, 8, 16, 24, 48, 96)
SAMPLES = (0, 5, 10, 20, 50, 100, 200)
DRAWS = 5
console = Console()
Curve = dict[str, list[float]]


@dataclass(frozen=True)
class Newcomer:
    """An unseen client: its card, and features and labels of its training and test samples."""

    card: ClientCard
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def with_samples(self, count: int, draw: int) -> Newcomer:
        """Return the client as if it had ``count`` of its training samples; all where it has fewer."""
        features, labels = self.train
        order = torch.randperm(
            len(labels), generator=torch.Generator().manual_seed(derive_seed(self.card.client_id, draw))
        )[:count]
        return replace(self, train=(features[order], labels[order]))


@dataclass(frozen=True)
class Scene:
    """The state of a run at its last checkpoint, and the unseen clients that are served from it.

    ``rank`` is that of the scatter within classes that clients of the run send.
    """

    state: HyperLoraState
    newcomers: Sequence[Newcomer]
    classes: int
    smoothing: float
    prior: float
    rank: int

    def accuracy(self, state: HyperLoraState, *, share: float, described: bool = True) -> float:
        """Return the newcomers' mean test accuracy with heads from ``state`` and, if described, their own samples."""
        statistics = {name: state.class_statistics[name] for name in state.training if name in state.class_statistics}
        cards, frequencies = [], []
        for one in self.newcomers:
            features, labels = one.train
            frequencies.append(class_frequencies(labels, self.classes, self.smoothing))
            cards.append(replace(one.card, signature=replace(one.card.signature, class_frequencies=frequencies[-1])))
            if described and len(labels):
                own = compute_class_statistics(features, labels, num_classes=self.classes, rank=self.rank)
                statistics[one.card.client_id] = own
        scale = state.head_scale if share else 1.0
        served = replace(state, class_statistics=statistics, head_share=share, head_scale=scale)
        starts = with_heads(served, cards, [state.served_anchor] * len(cards), self.prior)
        return mean(
            accuracy_of(add_prior(start, pi, self.prior), *one.test)
            for start, pi, one in zip(starts, frequencies, self.newcomers, strict=True)
        )


def accuracy_of(adapter: Adapter, features: Tensor, labels: Tensor) -> float:
    """Return the share of samples that an adapter's head is right about; ``features`` (n, d), ``labels`` (n,)."""
    logits = features @ adapter.head[:, :-1].mT + adapter.head[:, -1]
    return float((logits.argmax(dim=1) == labels).float().mean())


def last_state(run: RunFiles) -> HyperLoraState:
    """Return the state of a finished run of HyperLoRA; raises BadParameter where it has none with class statistics."""
    _, found = open_checkpoint(run)
    if found is None or not isinstance(found.state, HyperLoraState) or not found.state.class_statistics:
        raise typer.BadParameter(f"'{run.path}' has no checkpoint of HyperLoRA with class statistics")
    return found.state


def shuffled(state: HyperLoraState) -> HyperLoraState:
    """Return the state with everybody's signature another client's."""
    names = sorted(state.signature_vectors)
    others = random.Random(derive_seed("shuffled signatures")).sample(names, len(names))
    vectors = {name: state.signature_vectors[other] for name, other in zip(names, others, strict=True)}
    return replace(state, signature_vectors=vectors)


def open_scene(run: RunFiles) -> Scene:
    """Return the scene of a finished run of HyperLoRA."""
    state, runtime, known = last_state(run), open_runtime(run.config), run.require_clients()
    runtime.model.load(state.served_anchor)
    unseen = [card for card in known.cards.values() if not card.trains]
    newcomers = [
        Newcomer(card, *(features_of(runtime, card.client_id, split) for split in ("train", "test"))) for card in unseen
    ]
    config, rank = run.config, run.config.of(HyperLoraSettings).statistics_rank
    return Scene(state, newcomers, len(known.class_names), config.signature.smoothing, config.prior_strength, rank)


def features_of(runtime: ClientRuntime, client_id: str, split: str) -> tuple[Tensor, Tensor]:
    """Return features (n, d) of one split with the adapter that is loaded, and labels (n,)."""
    samples = runtime.tokens(client_id, split)
    return torch.cat([runtime.model.features(samples.tokens[batch]) for batch in samples.batches()]), samples.labels


def by_clients(scene: Scene) -> dict[str, Curve]:
    """Return accuracies by number of clients whose class statistics are known, for heads of several kinds."""
    seen = [name for name in scene.state.training if name in scene.state.class_statistics]
    share = scene.state.head_share or 0.5

    def states(count: int) -> Iterator[HyperLoraState]:
        for draw in range(DRAWS):
            chosen = random.Random(derive_seed("amortisation", count, draw)).sample(seen, count)
            yield replace(scene.state, training=tuple(sorted(chosen)))

    counts = [count for count in CLIENTS if count < len(seen)] + [len(seen)]
    return {
        "anchor": curve(counts, lambda count: [scene.accuracy(scene.state, share=0.0)]),
        "statistics head": curve(counts, lambda count: [scene.accuracy(state, share=1.0) for state in states(count)]),
        "both": curve(counts, lambda count: [scene.accuracy(state, share=share) for state in states(count)]),
    }


def by_samples(scene: Scene) -> dict[str, Curve]:
    """Return accuracies by number of the newcomer's own samples."""
    share = scene.state.head_share or 0.5

    def scores(kind: float) -> Callable[[int], list[float]]:
        return lambda count: [of_draw(scene, count, draw).accuracy(scene.state, share=kind) for draw in range(DRAWS)]

    kinds = {"anchor": 0.0, "statistics head": 1.0, "both": share}
    return {name: curve(SAMPLES, scores(kind)) for name, kind in kinds.items()}


def by_parts(scene: Scene) -> dict[str, float]:
    """Return accuracies without one part of what a head is made of at a time."""
    state, share = scene.state, scene.state.head_share or 0.5
    strangers = shuffled(state)
    return {
        "all": scene.accuracy(state, share=share),
        "signatures shuffled": scene.accuracy(strangers, share=share),
        "no own statistics": scene.accuracy(state, share=share, described=False),
        "neither": scene.accuracy(strangers, share=share, described=False),
        "anchor": scene.accuracy(state, share=0.0),
    }


def of_draw(scene: Scene, count: int, draw: int) -> Scene:
    """Return the scene with ``count`` own samples behind every newcomer."""
    return replace(scene, newcomers=[one.with_samples(count, draw) for one in scene.newcomers])


def curve(counts: Sequence[int], scores: Callable[[int], list[float]]) -> Curve:
    """Return, by number, the accuracies of all draws."""
    return {str(count): scores(count) for count in counts}


def draw(found: dict[str, dict[str, Curve]], target: Path) -> None:
    """Draw both sets of curves: means over draws, bands one standard deviation."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = ("clients that described their classes", "the newcomer's own training samples")
    for axes, label, curves in zip(panels, labels, found.values(), strict=True):
        for color, (name, one) in zip(PALETTE, curves.items(), strict=False):
            places, middle = range(len(one)), [100 * mean(values) for values in one.values()]
            band = [100 * stdev(values) if len(values) > 1 else 0.0 for values in one.values()]
            axes.errorbar(places, middle, yerr=band, marker="o", ms=3.5, color=color, label=name, capsize=2)
        axes.set(xlabel=label, xticks=range(len(one)), xticklabels=list(one))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("unseen clients, as received (%)")
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, target)


def main(
    preset: Annotated[str, typer.Option(help="name of a file in benchmarks/presets")] = "pacs_many",
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for the run")] = None,
    run: Annotated[Path | None, typer.Option(help="directory of a run that is there already")] = None,
    to: Annotated[Path, typer.Option(help="json file; the figure lies beside it")] = HERE
    / "results"
    / "amortisation.json",
) -> None:
    """Make the run, serve its unseen clients with less and less, and draw what that is worth."""
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="hyperlora-amortisation-") as scratch:
        files = RunFiles.open(run or make_run(preset, override or [], Path(scratch) / "run"))
        scene = open_scene(files)
    parts = by_parts(scene)
    found = {"clients": by_clients(scene), "samples": by_samples(scene)}
    write_json(to, {"preset": preset, "seed": files.config.seed, "commit": current_commit(), **found, "parts": parts})
    draw(found, to.with_suffix(".svg"))
    console.print("parts", json.dumps({name: round(100 * one, 1) for name, one in parts.items()}))
    for name, curves in found.items():
        console.print(
            name,
            json.dumps({kind: {n: round(100 * mean(v), 1) for n, v in one.items()} for kind, one in curves.items()}),
        )


if __name__ == "__main__":
    typer.run(main)
