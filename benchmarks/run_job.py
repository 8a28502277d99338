"""One run of a suite, in this process, to one json file."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.result import job_result, write_json
from benchmarks.suite import Job

NODES = 4


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
    from benchmarks.attacks import attacked
    from benchmarks.local_grid import LocalGrid
    from client_app.app import app
    from server_app.run import run

    began = time.perf_counter()
    with (
        attacked(app, job.config, job.attack, job.attack_share) as (client, attackers),
        tempfile.TemporaryDirectory(prefix="hyperlora-benchmark-") as scratch,
    ):
        values = {**job.config.flat(), "run.output-dir": str(Path(scratch) / "run"), "run.checkpoint-every": 0}
        directory = run(LocalGrid(client, values, NODES, remembers=False), values)
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        result = job_result(
            job,
            environment=json.loads((directory / "environment.json").read_text(encoding="utf-8")),
            clients=json.loads((directory / "evaluation.json").read_text(encoding="utf-8")),
            rounds=[json.loads(line) for line in lines],
            seconds=time.perf_counter() - began,
            attackers=sorted(attackers),
        )
    write_json(target, result)
