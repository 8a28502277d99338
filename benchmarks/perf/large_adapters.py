"""Adapters of a language model with eight billion parameters: twenty clients folded in from disk, and cut to rank 16.

Every client is made, added and dropped, as a reply is. The sum keeps what does not fit ``ram_limit`` in a temporary
file. What it is compared with writes the same numbers to a file and reads them once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

import torch

from benchmarks.perf.aggregation import peak_memory
from benchmarks.perf.made_up_adapters import made_up_adapter
from benchmarks.perf.measure import Comparison
from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import AdapterSum

HIDDEN, KEYS, INNER = 4096, 1024, 14336
LLAMA_8B = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
BLOCKS, RANK, CLIENTS = 32, 16, 20


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the seconds and the memory of one aggregation, in a process of its own."""
    code = "from benchmarks.perf.large_adapters import print_figures; print_figures()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    millions = figures["numbers"] / 1e6
    case = f"aggregate {CLIENTS} clients of an 8B language model, r = {RANK}, {millions:.1f} M numbers each"
    reference = "the same numbers written to a file and read once"
    ratio = figures["ours"] / figures["file"]
    yield Comparison("large_adapters", case, reference, figures["file"], figures["ours"], "s", ratio, "", 1)
    size, peak = 4 * CLIENTS * figures["numbers"] / 2**30, figures["peak"] / 1024
    case = "the same, peak memory (the ratio is its GiB)"
    yield Comparison("large_adapters", case, "all of the clients' numbers", size, peak, "GiB", peak, "at most 4", 1)


def print_figures(clients: int = CLIENTS, blocks: int = BLOCKS, scale: int = 1) -> None:
    """Print CPU seconds of both ways, the peak memory in MiB, and the numbers of a client.

    Args:
        clients: that are summed.
        blocks: of the model.
        scale: what all widths are divided by.
    """
    torch.set_num_threads(1)
    shapes = {kind: (m // scale, n // scale) for kind, (m, n) in LLAMA_8B.items()}
    seconds = {"ours": 0.0, "file": 0.0}
    total = AdapterSum()
    with tempfile.TemporaryFile() as file:
        for index in range(clients):
            adapter = made_up_adapter(index, shapes, blocks=blocks, rank=RANK)
            seconds["ours"] += _timed(partial(total.add, adapter, 1 / clients))
            seconds["file"] += _timed(partial(_write, adapter, file))
        seconds["file"] += _timed(lambda: _read(file))
    seconds["ours"] += _timed(lambda: total.truncated(RANK))
    numbers = sum(factors.B.numel() + factors.A.numel() for factors in adapter.low_rank.values())
    sys.stdout.write(json.dumps(seconds | {"peak": peak_memory(), "numbers": numbers}) + "\n")


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _write(adapter: Adapter, file: IO[bytes]) -> None:
    for factors in adapter.low_rank.values():
        for tensor in (factors.B, factors.A):
            file.write(tensor.numpy().data)


def _read(file: IO[bytes]) -> None:
    file.seek(0)
    while file.read(2**24):
        pass
