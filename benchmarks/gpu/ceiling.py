"""What the card reaches at best: one large matrix product after the other."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.gpu.bench import Bench, Case, Figures

SIZE, TINY_SIZE, REPEATS = 8192, 128, 20


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the product in bfloat16, which becomes the ceiling of the other parts, and in float32."""
    size = TINY_SIZE if bench.tiny else SIZE

    def measure(dtype: torch.dtype) -> Figures:
        left, right = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            left @ right
        seconds = median(bench.timed(lambda: left @ right) for _ in range(REPEATS))
        reached = 2 * size**3 / seconds
        if dtype == torch.bfloat16:
            bench.ceiling = reached
        return {"seconds": seconds, "rate": reached / 1e12, "unit": "TFLOP/s"}

    yield f"product of {size} x {size} matrices, bfloat16", lambda: measure(torch.bfloat16)
    yield f"product of {size} x {size} matrices, float32", lambda: measure(torch.float32)
