"""Several runs at the same time, one process each, none of which outlives the benchmark."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.run_job import run_job
from benchmarks.suite import Job


def end_with_parent() -> None:
    """Have this process end when its parent does, so that a killed benchmark leaves no run behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_all(jobs: list[Job], results: Path, workers: int, *, say: Callable[[str], None]) -> int:
    """Run ``jobs`` in ``workers`` processes, say how each ended and how long is left; return the failures."""
    began, failed = time.perf_counter(), 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        futures: dict[Future[float], Job] = {pool.submit(run_job, job, job.file(results)): job for job in jobs}
        for done, future in enumerate(as_completed(futures), start=1):
            left = (time.perf_counter() - began) / done * (len(jobs) - done)
            error = future.exception()
            outcome = f"[red]{error}[/red]" if error else f"{future.result():.0f} s"
            failed += error is not None
            say(f"{done}/{len(jobs)} {futures[future].name}: {outcome}, about {left / 60:.0f} min left")
    return failed
