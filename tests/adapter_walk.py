"""Follow an adapter through one round as the program runs: which files handle one, and in which functions?

``python -m tests.adapter_walk hyperlora`` prints them for round 4 of a small run. A file counts where one of its
functions has an adapter, or a batch of adapters, as an argument, a local variable or its result.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from benchmarks.local_grid import LocalGrid
from client_app.app import app
from models.adapters.adapter import Adapter
from models.adapters.batch import AdapterBatch
from server_app.run import run
from strategies.engine.strategy import LoraStrategy

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("server_app", "client_app", "strategies", "models", "hyperlora")
WATCHED = 4
SETTINGS = {
    "data.clients-per-domain": 2,
    "data.unseen-fraction": 0.5,
    "federation.clients-per-round": 3,
    "federation.rounds": WATCHED,
    "federation.evaluate-every": WATCHED,
    "train.local-steps": 2,
    "train.batch-size": 8,
    "generator.steps": 2,
    "run.checkpoint-every": 0,
}


def files_with_adapters(method: str) -> Mapping[str, set[str]]:
    """Return file -> functions that handle an adapter from making the starts of a round to its aggregation."""
    found: dict[str, set[str]] = defaultdict(set)

    def watch(frame: FrameType, event: str, result: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "return" or not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in PRODUCT:
            return
        if any(isinstance(value, Adapter | AdapterBatch) for value in [*frame.f_locals.values(), result]):
            found[str(path.relative_to(ROOT))].add(frame.f_code.co_qualname.partition(".<locals>")[0])

    configure, aggregate = LoraStrategy.configure_train, LoraStrategy.aggregate_train

    def configure_watched(self: LoraStrategy, server_round: int, *rest: Any) -> Any:
        sys.setprofile(watch if server_round == WATCHED else None)
        return configure(self, server_round, *rest)

    def aggregate_watched(self: LoraStrategy, *rest: Any) -> Any:
        try:
            return aggregate(self, *rest)
        finally:
            sys.setprofile(None)

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(LoraStrategy, "configure_train", configure_watched),
        patch.object(LoraStrategy, "aggregate_train", aggregate_watched),
    ):
        values = {**SETTINGS, "method": method, "run.output-dir": f"{folder}/run"}
        run(LocalGrid(app, values, 2), values)
    return found


if __name__ == "__main__":
    walk = files_with_adapters(sys.argv[1])
    for file, functions in sorted(walk.items()):
        print(f"{file}: {', '.join(sorted(functions))}")
    print(f"{len(walk)} files, {sum(map(len, walk.values()))} functions")
