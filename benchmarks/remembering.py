"""Heads for clients whose data are gone, from what they told the server of their classes while they were there.

The class statistics of a client are of the features of one anchor, and the anchor moves on. A server can serve the
client heads by what it told once, as it is; or first move its class means by what the class means of clients that are
still there moved since (the drift of Yu et al. 2020, arXiv 2004.00440, measured by class).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.amortisation import accuracy_of, features_of
from client_app.runtime import open_runtime
from hyperlora.reporting.run_files import RunFiles
from models.personalization.class_statistics import ClassStatistics
from models.personalization.prior import add_prior
from strategies.engine.checkpoint import Checkpoint
from strategies.methods.hyperlora.heads import with_heads

AGAIN, AS_TOLD, MOVED, NOTHING, ANCHOR = (
    "told again",
    "told once, kept as it is",
    "told once, moved with those still there",
    "nothing",
    "nothing, the anchor's head",
)
Statistics = Mapping[str, ClassStatistics]


def remembered(run: RunFiles, found: Sequence[Checkpoint], turns: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Return, by what the server knows, the accuracies as received of the clients of former domains at the end.

    Args:
        run: of HyperLoRA, finished.
        found: its checkpoints at the end of every turn.
        turns: by domain which of these is of its own turn, in order.
    """
    last, runtime = found[-1].state, open_runtime(run.config)
    cards = [card for _, card in sorted(found[-1].cards.items()) if turns[card.domain] < len(turns) - 1]
    runtime.model.load(last.served_anchor)
    tests = [features_of(runtime, card.client_id, "test") for card in cards]
    prior, accuracies = run.config.prior_strength, {}
    told = {card.client_id: found[turns[card.domain]].state.class_statistics for card in cards}
    for way, known in ways(last.class_statistics, told).items():
        state = replace(last, class_statistics=known, head_share=0.0 if way == ANCHOR else last.head_share)
        starts = with_heads(state, cards, [last.served_anchor] * len(cards), prior)
        accuracies[way] = {
            card.client_id: accuracy_of(add_prior(start, card.signature.class_frequencies, prior), *test)
            for card, start, test in zip(cards, starts, tests, strict=True)
        }
    return accuracies


def ways(now: Statistics, told: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Return what the server may know of the classes of clients.

    Args:
        now: what all clients tell at the end.
        told: by client that is gone what all clients told when it was still there.
    """
    present = {name: one for name, one in now.items() if name not in told}
    as_told = {name: then[name] for name, then in told.items()}
    moved = {name: shifted(then[name], drift(then, present)) for name, then in told.items()}
    return {
        AGAIN: now,
        AS_TOLD: {**present, **as_told},
        MOVED: {**present, **moved},
        NOTHING: present,
        ANCHOR: present,
    }


def drift(then: Statistics, now: Statistics) -> Tensor:
    """Return how far the mean of each class moved over the clients of ``now``, (C, d).

    A class that none of them has moved as all of their samples together.
    """
    counts, before = _total(then, now)
    _, after = _total(now, now)
    of_all = (after - before).sum(dim=0) / counts.sum()
    return torch.where(counts > 0, (after - before) / counts.clamp_min(1.0), of_all)


def shifted(one: ClassStatistics, shift: Tensor) -> ClassStatistics:
    """Return statistics of samples whose features moved by ``shift`` (C, d)."""
    return replace(one, sums=one.sums + one.counts[:, None] * shift)


def _total(statistics: Statistics, names: Collection[str]) -> tuple[Tensor, Tensor]:
    """Return counts (C, 1) and sums (C, d) over the clients with these names."""
    chosen = [statistics[name] for name in names]
    return torch.stack([one.counts for one in chosen]).sum(dim=0)[:, None], torch.stack(
        [one.sums for one in chosen]
    ).sum(dim=0)
