"""Local training of small models by several processes that share the device, as actors of a simulation do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, Case, Figures
from benchmarks.gpu.vit import CLASSES, random_weights

NAME, SIDE, BATCH, LAST_BLOCKS, STEPS = "deit_tiny_patch16_224", 128, 16, 2, 200
COUNTS, TINY_COUNTS, PATIENCE = (1, 2, 4), (1, 2), 100.0


def cases(bench: Bench) -> Iterator[Case]:
    """Yield how many steps a second 1, 2 and 4 processes make together; the first case measures them all."""
    found: dict[int, float] = {}
    counts = TINY_COUNTS if bench.tiny else COUNTS
    for count in counts:
        yield f"{count} at a time, each {_steps(bench.tiny)} steps", partial(_figures, bench, counts, count, found)


def _figures(bench: Bench, counts: tuple[int, ...], count: int, found: dict[int, float]) -> Figures:
    if not found:
        found |= _measure(bench, counts)
    steps = _steps(bench.tiny)
    return {"seconds": found[count] / steps, "rate": count * steps / found[count], "unit": "steps/s"}


def _steps(tiny: bool) -> int:
    return 3 if tiny else STEPS


def _measure(bench: Bench, counts: tuple[int, ...]) -> dict[int, float]:
    """Start the processes once and return, by how many of them train at the same time, the slowest one's seconds."""
    weights = random_weights(bench.scratch, NAME, SIDE)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(max(counts)), context.Queue()
    workers = [
        context.Process(
            target=_work,
            args=(index, counts, str(bench.device), str(weights), bench.tiny, barrier, answers),
            daemon=True,
        )
        for index in range(max(counts))
    ]
    for worker in workers:
        worker.start()
    slowest = dict.fromkeys(counts, 0.0)
    try:
        for _ in range(sum(counts)):
            count, seconds = answers.get(timeout=PATIENCE)
            slowest[count] = max(slowest[count], seconds)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return slowest


def _work(
    index: int, counts: tuple[int, ...], device: str, weights: str, tiny: bool, barrier: Any, answers: Any
) -> None:
    """Train once for every count that has this process, all of them at the same time."""
    torch.set_num_threads(1)
    bench = Bench(torch.device(device), tiny, Path(weights).parent)
    run = _trainer(bench, weights)
    run(1 if tiny else 10)
    for count in counts:
        barrier.wait(PATIENCE)
        if index < count:
            answers.put((count, bench.timed(lambda: run(_steps(tiny)))))
    barrier.wait(PATIENCE)


def _trainer(bench: Bench, weights: str) -> Any:
    from models.adapters.adapted_model import AdaptedModel
    from models.adapters.optimizers import OptimizerSpec
    from models.adapters.training import LocalTrainer, TokenSet
    from models.backbones.loading import build_backbone

    backbone = build_backbone(name=NAME, weights=weights, image_size=SIDE, num_classes=CLASSES)
    model = AdaptedModel(backbone, rank=4, alpha=8.0, last_blocks=LAST_BLOCKS)
    model.to(bench.device)
    tokens = torch.randn(4 * BATCH, backbone.num_tokens, backbone.embed_dim)
    samples = TokenSet(tokens, torch.arange(len(tokens)) % CLASSES)
    optimizer = OptimizerSpec("adamw", 1e-3, 0.0)
    return LocalTrainer(model, samples, optimizer=optimizer, batch_size=BATCH, seed=0).run
