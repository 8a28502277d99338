"""``python -m benchmarks.soak``: many rounds, many clients, random faults: nothing may grow, leak or get worse.

A run on digits whose clients raise, send NaN, send other shapes or never answer in a share of their messages, and the
same run without faults. Both are made in this process, one after the other.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from flwr.app import Message

from benchmarks.faulty_grid import FaultyGrid, at_random, not_finite, raises, silent, wrong_shape
from benchmarks.perf.measure import machine
from benchmarks.table import markdown
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.messages.train import TrainRequest
from hyperlora.storage.run_names import EVALUATION, METRICS

RESULT = Path(__file__).parent / "results" / "soak.json"
NODES, DOMAINS = 4, 4
MOST_GROWTH = 0.05
"""Share by which the memory of the last quarter of rounds may exceed that of the second."""
STANDARD_ERRORS = 3.0
KINDS = {"raised": "sensor is broken", "NaN": "NaN", "other shape": "expected float32", "no answer": "no reply"}
"""Short names of the reasons that the faults leave in the metrics."""
SETTINGS: dict[str, Scalar] = {
    "data.unseen-fraction": 0.2,
    "federation.clients-per-round": 10,
    "train.local-steps": 1,
    "train.batch-size": 8,
    "generator.steps": 2,
    "run.checkpoint-every": 10,
    "run.sinks": "",
}


@dataclass(frozen=True)
class Sample:
    """This process when a round begins: resident MiB, open files, child processes."""

    megabytes: float
    files: int
    children: int

    @classmethod
    def take(cls) -> Sample:
        """Look at this process now."""
        process = psutil.Process()
        with process.oneshot():
            return cls(process.memory_info().rss / 2**20, process.num_fds(), len(process.children(recursive=True)))


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    what: str
    expected: str
    seen: str
    passed: bool


@dataclass(frozen=True)
class SoakRun:
    """What one of the two runs left: a sample per round, failures by reason, k-step accuracy of every seen client."""

    samples: list[Sample]
    failures: dict[str, int]
    accuracy: dict[str, float]
    seconds: float


class SampledGrid(FaultyGrid):
    """A FaultyGrid that looks at this process whenever a round's training is sent."""

    samples: list[Sample]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take a sample for a round, then serve."""
        sent = list(messages)
        if sent and sent[0].metadata.message_type == TrainRequest.TYPE:
            self.samples.append(Sample.take())
        return super().push_messages(sent)


def soak_run(rounds: int, clients: int, share: float, seed: int) -> SoakRun:
    """Make one run in which a ``share`` of the train messages comes to grief."""
    from client_app.app import app
    from server_app.run import run

    own = {
        "federation.rounds": rounds,
        "federation.evaluate-every": rounds,
        "data.clients-per-domain": clients // DOMAINS,
    }
    began, faults = time.perf_counter(), (raises, not_finite, wrong_shape, silent)
    with tempfile.TemporaryDirectory(prefix="hyperlora-soak-") as scratch:
        values = RunConfig.parse({**SETTINGS, **own, "seed": seed, "run.output-dir": f"{scratch}/run"}).flat()
        grid = SampledGrid(app, values, NODES, at_random(share, seed, faults))
        grid.samples = []
        directory = run(grid, values)
        lines = (directory / METRICS).read_text(encoding="utf-8").splitlines()
        scores = json.loads((directory / EVALUATION).read_text(encoding="utf-8"))
    return SoakRun(grid.samples, _failures(lines), _accuracies(scores), time.perf_counter() - began)


def checks(faulty: SoakRun, calm: SoakRun, children_before: int, share: float) -> list[Check]:
    """Compare the two runs, and the rounds of the one with faults among each other."""
    struck, asked = sum(faulty.failures.values()), len(faulty.samples) * int(SETTINGS["federation.clients-per-round"])
    left = Sample.take().children - children_before
    return [
        Check("faults that struck", f"about {share:.0%} of {asked}", _counts(faulty.failures), struck > 0),
        Check("failures without faults", "none", _counts(calm.failures), not calm.failures),
        flat("resident memory, MiB", [one.megabytes for one in faulty.samples], MOST_GROWTH),
        flat("open files", [float(one.files) for one in faulty.samples], 0.0),
        Check("processes left", "none", str(left), left == 0),
        within_noise(faulty.accuracy, calm.accuracy),
    ]


def flat(what: str, values: list[float], growth: float) -> Check:
    """Compare the median of the last quarter of rounds with that of the second; the first fills caches."""
    quarter = max(1, len(values) // 4)
    early, last = statistics.median(values[quarter : 2 * quarter] or values), statistics.median(values[-quarter:])
    seen = f"{early:.0f} in the second quarter of rounds, {last:.0f} in the last"
    return Check(what, f"grows by at most {growth:.0%}", seen, last <= (1 + growth) * early)


def within_noise(faulty: dict[str, float], calm: dict[str, float]) -> Check:
    """Compare the accuracy of the clients in pairs: the mean difference may be three standard errors."""
    names = sorted(faulty.keys() & calm.keys())
    differences = [100 * (faulty[name] - calm[name]) for name in names]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(names) ** 0.5
    means = f"{100 * statistics.mean(calm.values()):.1f} % without, {100 * statistics.mean(faulty.values()):.1f} % with"
    seen = f"{means}; difference {mean:+.1f} points, standard error {error:.1f}, {len(names)} clients"
    expected = f"no more than {STANDARD_ERRORS:g} standard errors worse than without faults"
    return Check("accuracy of seen clients at the end", expected, seen, mean >= -STANDARD_ERRORS * error)


def main(
    rounds: Annotated[int, typer.Option(min=8, help="rounds of each run")] = 200,
    clients: Annotated[int, typer.Option(min=16, help="clients, a multiple of four")] = 100,
    share: Annotated[float, typer.Option(min=0, max=1, help="share of messages that a fault strikes")] = 0.05,
    seed: Annotated[int, typer.Option(help="of data, cohorts and faults")] = 0,
    to: Annotated[Path, typer.Option(help="the json file to write")] = RESULT,
) -> None:
    """Make both runs, print the table and write it with every sample; exit status 1 if a check failed."""
    before = Sample.take().children
    calm, faulty = (soak_run(rounds, clients, part, seed) for part in (0.0, share))
    found = checks(faulty, calm, before, share)
    print(as_table(found))
    content = {
        "rounds": rounds,
        "clients": clients,
        "share": share,
        "seed": seed,
        "machine": machine(),
        "checks": [asdict(one) for one in found],
        "runs": {"without faults": as_json(calm), "with faults": as_json(faulty)},
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(0 if all(one.passed for one in found) else 1)


def as_table(found: list[Check]) -> str:
    """Return the checks as a markdown table."""
    rows = {one.what: [one.expected, one.seen, "yes" if one.passed else "**NO**"] for one in found}
    return markdown("soak", ("expected", "seen", "as expected"), rows)


def as_json(run: SoakRun) -> dict[str, Any]:
    """Return columns of the samples, one number per round, and the rest."""
    columns = {
        name: [round(getattr(one, name), 1) for one in run.samples] for name in ("megabytes", "files", "children")
    }
    return {"seconds": round(run.seconds, 1), "failures": run.failures, **columns}


def _failures(lines: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in lines:
        for reason in json.loads(line)["failures"].values():
            kind = next((name for name, part in KINDS.items() if part in reason), reason)
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def _accuracies(scores: list[dict[str, Any]]) -> dict[str, float]:
    return {one["client_id"]: one["k_step"] for one in scores if one["seen"] and one["track"] == "start"}


def _counts(failures: dict[str, int]) -> str:
    parts = ", ".join(f"{count} x {reason}" for reason, count in sorted(failures.items()))
    return f"{sum(failures.values())} ({parts})" if failures else "none"


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    typer.run(main)
