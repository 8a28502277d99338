"""Aggregation of ViT-B/16's adapters: the product-space kernel against the dense sum with a full SVD."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.perf.made_up_adapters import VIT_B, made_up_adapter
from benchmarks.perf.measure import Comparison, in_turns
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.lowrank.product_sum import RAM_LIMIT, ProductSum

RANK, BLOCKS, POOL, MANY, AMPLE = 8, 12, 30, 1000, 2**30
BARS = {10: "at least 50", 100: "at least 15"}


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the comparisons for 10 and 100 clients, then time and memory for 1,000."""
    for clients, bar in BARS.items():
        yield _against_dense(clients, bar, repeats, RAM_LIMIT, "")
    yield _against_dense(100, BARS[100], repeats, AMPLE, ", all in RAM")
    few, many = (_in_own_process(clients) for clients in (10, MANY))
    read, ours = (1000 * many[name] / MANY for name in ("read", "streamed"))
    case, reference = f"aggregate {MANY:,} clients, per client", "reading the factors from RAM"
    yield Comparison("aggregation", case, reference, read, ours, "ms", ours / read, "at most 2", 1)
    case = f"peak memory of {MANY:,} clients (the ratio is the difference)"
    difference = many["peak"] - few["peak"]
    yield Comparison(
        "aggregation", case, "of 10 clients", few["peak"], many["peak"], "MiB", difference, "at most 100", 1
    )


def client(index: int, pool: list[Adapter]) -> Adapter:
    """Return a client that pairs one adapter's B with another one's A, so that a small pool gives many clients."""
    count = len(pool)
    left, right = pool[index % count], pool[(7 * index + index // count) % count]
    pairs = {kind: Factors(one.B, right.low_rank[kind].A) for kind, one in left.low_rank.items()}
    return Adapter(pairs, left.head)


def streamed(clients: int, pool: list[Adapter], ram_limit: int = RAM_LIMIT) -> dict[str, Factors]:
    """Return the truncated average of all modules; clients are folded in one by one."""
    sums = {kind: ProductSum(ram_limit=ram_limit) for kind in VIT_B}
    for index in range(clients):
        for kind, factors in client(index, pool).low_rank.items():
            sums[kind].add(factors, 1 / clients)
    return {kind: total.truncated(RANK) for kind, total in sums.items()}


def _dense_block(clients: int, pool: list[Adapter]) -> None:
    """Sum and truncate the four modules of one block by full SVDs, the other blocks take as long."""
    for kind, (m, n) in VIT_B.items():
        total = torch.zeros(m, n)
        for index in range(clients):
            factors = client(index, pool).low_rank[kind]
            total.addmm_(factors.B[0], factors.A[0], alpha=1 / clients)
        U, S, Vh = torch.linalg.svd(total, full_matrices=False)
        torch.matmul(U[:, :RANK] * S[:RANK], Vh[:RANK])


def _against_dense(clients: int, bar: str, repeats: int, ram_limit: int, where: str) -> Comparison:
    pool = _pool(clients)
    sides = {"dense": lambda: _dense_block(clients, pool), "streamed": lambda: streamed(clients, pool, ram_limit)}
    seconds = in_turns(sides, repeats)
    dense, ours = BLOCKS * seconds["dense"], seconds["streamed"]
    case = f"aggregate {clients} clients, ViT-B/16, r = {RANK}{where}"
    reference = "dense sum, full SVD (one block measured, times 12)"
    return Comparison("aggregation", case, reference, dense, ours, "s", dense / ours, bar, repeats)


def _pool(clients: int) -> list[Adapter]:
    return [made_up_adapter(seed, VIT_B, blocks=BLOCKS, rank=RANK) for seed in range(min(clients, POOL))]


def _in_own_process(clients: int) -> dict[str, float]:
    code = f"from benchmarks.perf.aggregation import print_figures; print_figures({clients})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def print_figures(clients: int) -> None:
    """Aggregate ``clients`` from a pool of ten; print CPU seconds and this process's peak memory in MiB."""
    torch.set_num_threads(1)
    pool = _pool(10)

    def read() -> None:
        for index in range(clients):
            for factors in client(index, pool).low_rank.values():
                factors.B.sum()
                factors.A.sum()

    figures = in_turns({"read": read, "streamed": lambda: streamed(clients, pool)}, 1)
    sys.stdout.write(json.dumps(figures | {"peak": peak_memory()}) + "\n")


def peak_memory() -> float:
    """Return this process's peak in MiB; ``ru_maxrss`` would count the parent that it was forked from."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
