"""Runs of a suite: one in this process, or several at the same time in processes that end with the benchmark."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.result import job_result, run_file, write_json
from benchmarks.suite import Job
from hyperlora.storage.run_names import ENVIRONMENT, EVALUATION, METRICS

NODES = 4


def run_all(jobs: list[Job], results: Path, workers: int, *, say: Callable[[str], None]) -> int:
    """Run ``jobs`` in ``workers`` processes, say how each ended and how long is left; return the failures."""
    began, failed = time.perf_counter(), 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        futures: dict[Future[float], Job] = {pool.submit(run_job, job, run_file(results, job)): job for job in jobs}
        for done, future in enumerate(as_completed(futures), start=1):
            left = (time.perf_counter() - began) / done * (len(jobs) - done)
            error = future.exception()
            outcome = f"[red]{error}[/red]" if error else f"{future.result():.0f} s"
            failed += error is not None
            say(f"{done}/{len(jobs)} {futures[future].name}: {outcome}, about {left / 60:.0f} min left")
    return failed


def end_with_parent() -> None:
    """Have this process end when its parent does, so that a killed benchmark leaves no run behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_job(job: Job, target: Path) -> float:
    """Run ``job`` and return the seconds it took."""
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    if job.reference == "centralised":
        from benchmarks.centralised import run_centralised

        run_centralised(job, target)
    else:
        run_federation(job, target)
    return time.perf_counter() - began


def run_federation(job: Job, target: Path) -> None:
    """Run ``job`` through the same ServerApp and ClientApp as Flower would."""
    from benchmarks.adapting import AdaptingApp, mean_losses
    from benchmarks.attacks import attacked
    from benchmarks.local_grid import LocalGrid
    from benchmarks.robust_rules import robust
    from client_app.app import app
    from server_app.run import run

    began = time.perf_counter()
    with (
        robust(job.reference),
        attacked(app, job.config, job.attack, job.attack_share) as (client, attackers),
        tempfile.TemporaryDirectory(prefix="hyperlora-benchmark-") as scratch,
    ):
        values = {**job.config.flat(), "run.output-dir": str(Path(scratch) / "run"), "run.checkpoint-every": 0}
        tried = AdaptingApp(client, job.config, job.adapting) if job.adapting else None
        directory = run(LocalGrid(tried or client, values, NODES, remembers=False), values)
        lines = (directory / METRICS).read_text(encoding="utf-8").splitlines()
        rounds = [json.loads(line) for line in lines]
        if not job.attack:
            require_all_clients(rounds)
        result = job_result(
            job,
            environment=json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8")),
            clients=json.loads((directory / EVALUATION).read_text(encoding="utf-8")),
            rounds=rounds,
            seconds=time.perf_counter() - began,
            attackers=sorted(attackers),
            adapting=mean_losses(tried.losses) if tried else (),
        )
    write_json(target, result)


def require_all_clients(rounds: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the result of a run without an attack in which a client was left out, as by a machine that stood still.

    Raises:
        RuntimeError: in which round, how many, and the first one's reason.
    """
    for record in rounds:
        if failures := record["failures"]:
            client, reason = next(iter(failures.items()))
            left = f"round {record['server_round']} left {len(failures)} clients out"
            raise RuntimeError(f"no result: {left}, '{client}' since {reason}")
