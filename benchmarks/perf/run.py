"""``python -m benchmarks perf``: run the chosen benchmarks one after the other and print their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.perf.figures import draw_series
from benchmarks.perf.measure import Comparison, save, table

BENCHMARKS = (
    "aggregation",
    "large_adapters",
    "sharding",
    "prefix_cache",
    "ragged_texts",
    "start_up",
    "server_time",
    "growth",
    "many_clients",
    "secure_sums",
    "simulation",
)
REPEATS = 5


def run_perf(chosen: Sequence[str], folder: Path, say: Callable[[str], None], repeats: int = REPEATS) -> bool:
    """Run ``chosen`` (all where empty), write a json file for each to ``folder`` and return whether all bars are kept.

    Raises:
        ValueError: a benchmark is not known.
    """
    unknown = sorted(set(chosen) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"no benchmark is called '{unknown[0]}'; there are {', '.join(BENCHMARKS)}")
    torch.set_num_threads(1)
    results: list[Comparison] = []
    for name in chosen or BENCHMARKS:
        found: list[Comparison] = []
        for one in _benchmark(name)(repeats):
            found.append(one)
            save(found, folder / f"{name}.json")
        draw_series(found, folder / f"{name}.png")
        say(table(found) + "\n")
        results += found
    return all(one.passed is not False for one in results)


def _benchmark(name: str) -> Callable[[int], Iterator[Comparison]]:
    module: Mapping[str, Callable[[int], Iterator[Comparison]]] = vars(import_module(f"benchmarks.perf.{name}"))
    return module["run"]
