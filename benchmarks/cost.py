"""What is left of a suite costs so much: from runs that are there, else from what the suite believes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.result import gpus_of
from benchmarks.suite import HERE, Job, expected_minutes, load_jobs
from benchmarks.table import markdown

Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def cost_of(missing: Sequence[Job], results: Results, workers: int) -> str:
    """Return a sentence: core-minutes of the missing runs, and how long they take with so many at the same time."""
    minutes = [_minutes(job, results) for job in missing]
    unknown = sum(one is None for one in minutes)
    known = sum(one for one in minutes if one is not None)
    if unknown == len(missing):
        return "what they cost is not known: no run has been made and the suite does not say"
    more = f", and {unknown} runs of which nothing is known" if unknown else ""
    return f"about {known:.0f} minutes of one core, {known / workers:.0f} with {workers} at the same time{more}"


def _minutes(job: Job, results: Results) -> float | None:
    """Return the minutes of a run: the mean of its variant's here, else of the variants here, else the suite's word.

    Runs that shared a GPU tell nothing of a core.
    """
    found = results.get(job.suite, {})
    here = {name: [run for run in runs if not gpus_of(run)] for name, runs in found.items()}
    runs = here.get(job.variant) or [run for own in here.values() for run in own]
    return mean(run["seconds"] for run in runs) / 60 if runs else expected_minutes(job.suite) or None


def cost_page() -> str:
    """Return a markdown table: runs and core-hours of every suite that says how long a run takes."""
    rows = {}
    for name in sorted(path.stem for path in (HERE / "suites").glob("*.toml")):
        if minutes := expected_minutes(name):
            runs = len(load_jobs(name, {}, [], []))
            rows[f"`{name}`"] = [str(runs), f"{minutes:g}", f"{runs * minutes / 60:.1f}"]
    return markdown("suite", ["runs", "minutes of a run, one core", "hours of one core"], rows)
