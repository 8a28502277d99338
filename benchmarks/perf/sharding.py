"""A sum of large adapters in one process and in actors of a Ray cluster of this machine, wall time of both.

Both are given the same adapters, made beforehand, and end with the truncated sum: what crosses between processes is in
the time. How much it saves depends on the cores, which the line names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from benchmarks.perf.large_adapters import LLAMA_8B, RANK
from benchmarks.perf.measure import Comparison, in_turns
from benchmarks.perf.vit import made_up_adapter
from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import AdapterSum
from models.lowrank.shards import ShardedProductSum, ShardPool

CLIENTS, BLOCKS = 10, 4


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the seconds of a round's sum both ways."""
    import ray

    adapters = [made_up_adapter(index, LLAMA_8B, blocks=BLOCKS, rank=RANK) for index in range(CLIENTS)]
    count, names = max(2, os.cpu_count() or 1), iter(range(10**6))
    ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False)
    try:
        pool = ShardPool(count)
        sides = {
            "alone": lambda: _sum(AdapterSum(), adapters),
            "dealt out": lambda: _sum(
                AdapterSum(lambda kind: ShardedProductSum(pool, f"{kind} {next(names)}")), adapters
            ),
        }
        seconds = in_turns(sides, repeats, clock=time.perf_counter)
    finally:
        ray.shutdown()
    alone, dealt_out = seconds["alone"], seconds["dealt out"]
    case = (
        f"sum {CLIENTS} clients of {BLOCKS} blocks of an 8B language model in {count} actors of {os.cpu_count()} CPUs"
    )
    yield Comparison(
        "sharding", case, "in one process, one thread", alone, dealt_out, "s, wall", alone / dealt_out, "", repeats
    )


def _sum(total: AdapterSum, adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        total.add(adapter, 1 / len(adapters))
    total.truncated(RANK)
