"""Aggregation of ViT-B/16's adapters: the product-space kernel against the dense sum with a full SVD."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks.perf.measure import Comparison, in_turns
from benchmarks.perf.vit import VIT_B, made_up_adapter
from models.adapter import Adapter
from models.low_rank import Factors
from models.product_sum import ProductSum

RANK, BLOCKS, POOL = 8, 12, 30
BARS = {10: "at least 50", 100: "at least 15"}


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the comparisons for 10 and 100 clients, then time and memory for 1,000."""
    for clients, bar in BARS.items():
        yield _against_dense(clients, bar, repeats)
    yield _against_reading(1000)
    few, many = (_peak_of_process(clients) for clients in (10, 1000))
    case = "peak memory, 1,000 clients instead of 10: MiB more"
    yield Comparison("aggregation", case, "10 clients", few, many, "MiB", many - few, "at most 100", 1)


def client(index: int, pool: list[Adapter]) -> Adapter:
    """Return a client that pairs one adapter's B with another one's A, so that a small pool gives many clients."""
    count = len(pool)
    left, right = pool[index % count], pool[(7 * index + index // count) % count]
    pairs = {kind: Factors(one.B, right.low_rank[kind].A) for kind, one in left.low_rank.items()}
    return Adapter(pairs, left.head)


def streamed(clients: int, pool: list[Adapter]) -> dict[str, Factors]:
    """Return the truncated average of all modules; clients are folded in one by one."""
    sums = {kind: ProductSum() for kind in VIT_B}
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


def _against_dense(clients: int, bar: str, repeats: int) -> Comparison:
    pool = _pool(clients)
    sides = {"dense": lambda: _dense_block(clients, pool), "streamed": lambda: streamed(clients, pool)}
    seconds = in_turns(sides, repeats)
    dense, ours = BLOCKS * seconds["dense"], seconds["streamed"]
    case = f"aggregate {clients} clients, ViT-B/16, r = {RANK}"
    reference = "dense sum, full SVD (one block measured, times 12)"
    return Comparison("aggregation", case, reference, dense, ours, "s", dense / ours, bar, repeats)


def _against_reading(clients: int) -> Comparison:
    pool = _pool(clients)

    def read() -> None:
        for index in range(clients):
            for factors in client(index, pool).low_rank.values():
                factors.B.sum()
                factors.A.sum()

    seconds = in_turns({"read": read, "streamed": lambda: streamed(clients, pool)}, 1)
    each = {name: 1000 * value / clients for name, value in seconds.items()}
    case, ratio = f"aggregate {clients} clients, per client", each["streamed"] / each["read"]
    return Comparison(
        "aggregation", case, "reading the factors from RAM", each["read"], each["streamed"], "ms", ratio, "at most 2", 1
    )


def _pool(clients: int) -> list[Adapter]:
    return [made_up_adapter(seed, VIT_B, blocks=BLOCKS, rank=RANK) for seed in range(min(clients, POOL))]


def _peak_of_process(clients: int) -> float:
    """Return the peak memory in MiB of a process that draws every client as it comes and then aggregates."""
    code = f"from benchmarks.perf.aggregation import print_peak; print_peak({clients})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(clients: int) -> None:
    """Aggregate ``clients`` from a pool of ten and print this process's peak memory in MiB."""
    torch.set_num_threads(1)
    streamed(clients, _pool(10))
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f}\n")
