"""A sum of large adapters in one process and in actors of a Ray cluster of this machine, wall time of both.

Both are given the same adapters, made beforehand, and end with the truncated sum: what crosses between processes is in
the time. How much it saves depends on the cores, which the line names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from benchmarks.perf.large_adapters import LLAMA_8B, RANK
from benchmarks.perf.made_up_adapters import made_up_adapter
from benchmarks.perf.measure import Comparison, in_turns
from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import AdapterSum
from models.lowrank.shards import ShardedProductSum, ShardPool

CLIENTS, BLOCKS = 10, 4


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the seconds of a round's sum both ways, and those after the last reply where all were sent on before."""
    import ray

    adapters = [made_up_adapter(index, LLAMA_8B, blocks=BLOCKS, rank=RANK) for index in range(CLIENTS)]
    count = max(2, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False)
    try:
        pool = ShardPool(count)
        sides = {
            "alone": lambda: _sum(AdapterSum(), adapters),
            "dealt out": lambda: _sum(AdapterSum(lambda kind: ShardedProductSum(pool)), adapters),
            "arriving": lambda: _park(pool, adapters),
            "after": lambda: _sum(AdapterSum(lambda kind: ShardedProductSum(pool)), adapters),
        }
        seconds = in_turns(sides, repeats, clock=time.perf_counter)
    finally:
        ray.shutdown()
    case = (
        f"sum {CLIENTS} clients of {BLOCKS} blocks of an 8B language model in {count} actors of {os.cpu_count()} CPUs"
    )
    alone = seconds["alone"]
    for said, value in ((case, seconds["dealt out"]), ("the same, of it after the last reply", seconds["after"])):
        yield Comparison(
            "sharding", said, "in one process, one thread", alone, value, "s, wall", alone / value, "", repeats
        )


def _park(pool: ShardPool, adapters: Sequence[Adapter]) -> None:
    """Send adapters to their actors, as they are sent while a round still waits, and wait until all are there."""
    import ray

    for adapter in adapters:
        for factors in adapter.low_rank.values():
            pool.park(factors)
    ray.get([one for owner in pool.owners for one in owner.sent])


def _sum(total: AdapterSum, adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        total.add(adapter, 1 / len(adapters))
    total.truncated(RANK)
