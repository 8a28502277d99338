"""Start of a client process: what importing ``client_app.app`` costs, beside torch alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.perf.measure import Comparison

CODE = "import time; t = time.process_time(); import {module}; print(time.process_time() - t)"


def run(repeats: int) -> Iterator[Comparison]:
    """Yield CPU seconds of the import, in a fresh process each time; the bar is on the seconds themselves."""
    seconds: dict[str, list[float]] = {"torch": [], "client_app.app": []}
    for _ in range(repeats):
        for module, values in seconds.items():
            done = subprocess.run(
                [sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=True
            )
            values.append(float(done.stdout))
    torch_alone, ours = (statistics.median(values) for values in seconds.values())
    case = "import client_app.app (the ratio is its seconds)"
    yield Comparison("start_up", case, "import torch", torch_alone, ours, "s", ours, "at most 4", repeats)
