"""A sum of large adapters in one process and in actors of a Ray cluster of this machine, wall time of both.

Both are given the same adapters, made beforehand, and end with the truncated sum: what crosses between processes is in
the time. How much it saves depends on the cores, which the line names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

from benchmarks.perf.large_adapters import LLAMA_8B, RANK
from benchmarks.perf.measure import Comparison
from benchmarks.perf.vit import made_up_adapter
from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import AdapterSum
from models.lowrank.shards import ShardedProductSum, ShardPool

CLIENTS, BLOCKS = 10, 4


def run(repeats: int, clients: int = CLIENTS, blocks: int = BLOCKS, scale: int = 1) -> Iterator[Comparison]:
    """Yield the seconds of a round's sum both ways.

    Args:
        repeats: of each, in turns.
        clients: that are summed.
        blocks: of the model.
        scale: what all widths are divided by.
    """
    import ray

    shapes = {kind: (m // scale, n // scale) for kind, (m, n) in LLAMA_8B.items()}
    adapters = [made_up_adapter(index, shapes, blocks=blocks, rank=RANK) for index in range(clients)]
    count = max(2, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False)
    try:
        alone, dealt_out = _in_turns(adapters, ShardPool(count), repeats)
    finally:
        ray.shutdown()
    case = (
        f"sum {clients} clients of {blocks} blocks of an 8B language model in {count} actors of {os.cpu_count()} CPUs"
    )
    yield Comparison(
        "sharding", case, "in one process, one thread", alone, dealt_out, "s, wall", alone / dealt_out, "", repeats
    )


def _in_turns(adapters: Sequence[Adapter], pool: ShardPool, repeats: int) -> tuple[float, float]:
    """Return the median seconds in this process and in the actors, without the first turn, in which these start."""
    names = iter(range(10**6))
    sides: dict[str, Callable[[], AdapterSum]] = {
        "alone": AdapterSum,
        "dealt out": lambda: AdapterSum(lambda kind: ShardedProductSum(pool, f"{kind} {next(names)}")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, make in sides.items():
            seconds[name].append(_timed(partial(_summed, make, adapters)))
    return median(seconds["alone"][1:]), median(seconds["dealt out"][1:])


def _summed(make: Callable[[], AdapterSum], adapters: Sequence[Adapter]) -> None:
    total = make()
    for adapter in adapters:
        total.add(adapter, 1 / len(adapters))
    total.truncated(RANK)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
