"""What the parts of the benchmark share: the device, timing, peak memory, and the count of operations."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

Figures = dict[str, Any]
Case = tuple[str, Callable[[], Figures]]
"""What is measured, and how; figures are ``seconds``, ``rate`` with its ``unit``, ``memory`` in bytes and ``share``."""
Part = Callable[["Bench"], Iterator[Case]]
WARM, BLOCK, BLOCKS = 3, 5, 6
"""Steps before the clock runs, steps that are timed together, and the most blocks of these."""


@dataclass
class Bench:
    """Where and at what size is measured.

    Attributes:
        device: that trains.
        tiny: whether all shapes are tiny ones, for a CPU and for the test.
        scratch: folder for images, weights and runs.
        ceiling: operations a second of a large matrix product in bfloat16, as measured; 0 before it is known.
        seconds: of one case's timed steps at most, beyond its first two blocks.
    """

    device: torch.device
    tiny: bool
    scratch: Path
    ceiling: float = 0.0
    seconds: float = 1.2

    def wait(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object]) -> float:
        """Return the wall seconds of ``work``, the device's included."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def step_figures(self, steps: Callable[[int], object], *, work: float, items: int, unit: str) -> Figures:
        """Return what a training step takes: the median of blocks of steps after some that are not timed.

        Args:
            steps: makes so many steps.
            work: floating-point operations of a step.
            items: samples or tokens of a step, whose number a second is the rate.
            unit: of the rate.
        """
        self.clean()
        warm, block = (1, 1) if self.tiny else (WARM, BLOCK)
        steps(warm)
        taken: list[float] = []
        while len(taken) < 2 or (block * sum(taken) < self.seconds and len(taken) < BLOCKS):
            taken.append(self.timed(lambda: steps(block)) / block)
        seconds = median(taken)
        figures: Figures = {"seconds": seconds, "rate": items / seconds, "unit": unit, "work": work}
        if self.ceiling:
            figures["share"] = work / seconds / self.ceiling
        return figures | self.memory()

    def clean(self) -> None:
        """Give back what an earlier case held, and begin to note the peak anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.empty(0, device=self.device)  # begins the context, which resetting needs
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> Figures:
        """Return the most bytes that tensors had on the device since :meth:`clean`; nothing on a CPU."""
        cuda = self.device.type == "cuda"
        return {"memory": torch.cuda.max_memory_allocated(self.device)} if cuda else {}


def training_work(model: torch.nn.Module, *, rows: int, head_rows: int, length: int, width: int, blocks: int) -> float:
    """Return the floating-point operations of a training step of LoRA on every block of a transformer.

    A product with a matrix of w numbers takes 2 w operations a row of its input, forward, and as many backward for the
    gradient of the input. Frozen weights need no more; the factors A and B take another 2 w for their own gradient.
    Attention multiplies queries by keys and weights by values, 4 t d operations a row forward and twice that backward,
    for t tokens and d the width of all heads together; a causal mask saves none of it, as it is computed here.
    Elementwise operations, embeddings and the optimiser are left out.

    Args:
        model: carries PEFT's layers on all blocks.
        rows: tokens of a step, of all samples.
        head_rows: inputs of the trained head or of the ``lm_head`` in a step.
        length: t.
        width: d.
        blocks: number of blocks.
    """
    from peft.tuners.lora import LoraLayer

    per_row = 12.0 * length * width * blocks
    head = 0
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            frozen: Any = module.get_base_layer()
            factors: list[Any] = [*module.lora_A.values(), *module.lora_B.values()]
            per_row += 4 * frozen.weight.numel() + 6 * sum(int(one.weight.numel()) for one in factors)
        elif name.endswith("lm_head"):
            weight: Any = module.weight
            head = weight.numel()
    return rows * per_row + 4.0 * head_rows * head
