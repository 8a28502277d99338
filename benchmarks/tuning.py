"""Which setting of a grid each variant gets: the lowest validation loss, recorded with all that were tried."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.suite import TUNED, Job


def validation_loss(run: Mapping[str, Any]) -> float:
    """Return the seen clients' mean validation loss after the last round: as received or after K steps, the lower.

    Infinite where no client could use what it was sent.
    """
    figures = run["rounds"][-1]["evaluation"].get("seen")
    if figures is None:
        return math.inf
    return float(min(figures[name]["mean"] for name in ("zero_step_validation_loss", "k_step_validation_loss")))


def choose(suite: str, jobs: Sequence[Job], results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Write ``benchmarks/tuned/<suite>.toml`` from the runs that are there and return its text."""
    tried: dict[str, dict[str, float]] = {}
    for job in jobs:
        name, _, choice = job.variant.rpartition(" @ ")
        for run in results.get(job.variant, []):
            tried.setdefault(name, {})[choice] = validation_loss(run)
    text = "".join(_entry(name, losses) for name, losses in tried.items())
    TUNED.mkdir(exist_ok=True)
    (TUNED / f"{suite}.toml").write_text(text, encoding="utf-8")
    return text


def _entry(name: str, losses: Mapping[str, float]) -> str:
    best = min(losses, key=lambda choice: (losses[choice], choice))
    table = ", ".join(f'"{choice}" = {loss:.4f}' for choice, loss in losses.items())
    key = json.dumps(name)
    return f'[{key}]\nvalidation-loss = {{ {table} }}\nset = {{ "train.learning-rate" = {best} }}\n\n'
