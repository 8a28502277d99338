"""The mean of ten clients' adapters of ViT-B/16 cut to their rank: the server's own way, and on the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from benchmarks.gpu.bench import Bench, Case, Figures
from benchmarks.gpu.vit import RANK
from benchmarks.perf.made_up_adapters import DEIT_TINY, VIT_B, made_up_adapter
from models.adapters.adapter import Adapter, combine
from models.adapters.adapter_sum import AdapterSum
from models.lowrank.factors import Factors
from models.lowrank.truncation import best_rank

CLIENTS, REPEATS = 10, 3


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the server's sum on one thread and on all, then the same factors cut where the device is."""
    shapes, blocks = (DEIT_TINY, 1) if bench.tiny else (VIT_B, 12)
    adapters = [made_up_adapter(seed, shapes, blocks=blocks, rank=RANK) for seed in range(CLIENTS)]
    reference = _sum_and_cut(adapters)
    for threads in dict.fromkeys((1, min(16, len(os.sched_getaffinity(0))))):
        yield f"server's own, CPU, {threads} thread(s)", partial(_on_cpu, bench, adapters, threads)
    yield f"factors on the {bench.device.type}, gram", partial(_on_device, bench, adapters, reference)


def _sum_and_cut(adapters: list[Adapter]) -> Adapter:
    total = AdapterSum()
    for adapter in adapters:
        total.add(adapter, 1 / len(adapters))
    return total.truncated(RANK)


def _on_cpu(bench: Bench, adapters: list[Adapter], threads: int) -> Figures:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return {"seconds": median(bench.timed(lambda: _sum_and_cut(adapters)) for _ in range(REPEATS))}
    finally:
        torch.set_num_threads(before)


def _on_device(bench: Bench, adapters: list[Adapter], reference: Adapter) -> Figures:
    """Copy the sum's factors to the device and cut them there; the copy counts.

    By ``gram``, since block Lanczos draws its vectors on the CPU.
    """
    total = combine(adapters, [1 / len(adapters)] * len(adapters))

    def cut() -> Adapter:
        moved = total.map(lambda one: Factors(one.B.to(bench.device), one.A.to(bench.device)))
        return moved.map(lambda one: _to_cpu(best_rank(one, RANK, method="gram")))

    bench.clean()
    made = cut()
    seconds = median(bench.timed(cut) for _ in range(REPEATS))
    return {"seconds": seconds, "difference": difference(made, reference)} | bench.memory()


def _to_cpu(factors: Factors) -> Factors:
    return Factors(factors.B.cpu(), factors.A.cpu())


def difference(made: Adapter, reference: Adapter) -> float:
    """Return the largest ||X - Y||_F / ||Y||_F over all modules of two adapters."""
    apart = []
    for kind, expected in reference.low_rank.items():
        right = expected.B @ expected.A
        wrong = made.low_rank[kind].B @ made.low_rank[kind].A - right
        apart.append(torch.linalg.matrix_norm(wrong) / torch.linalg.matrix_norm(right))
    return float(torch.cat(apart).max())
