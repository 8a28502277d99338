"""Two things measured in turns, so that a busy machine slows both alike, and what came of it."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes:
        benchmark: which file made it.
        case: what was measured.
        reference: name of the thing compared with.
        reference_value, value: medians of the two.
        unit: of both.
        ratio: what ``bar`` is about.
        bar: in words, such as ``at least 50`` or ``at most 2``; empty where there is none.
        repeats: measurements of each side.
        series: curves behind it, by name; their figure is drawn beside the table.
    """

    benchmark: str
    case: str
    reference: str
    reference_value: float
    value: float
    unit: str
    ratio: float
    bar: str
    repeats: int
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether the ratio keeps the bar; None without a bar."""
        if not self.bar:
            return None
        word, number = self.bar.rsplit(" ", 1)
        return self.ratio >= float(number) if word == "at least" else self.ratio <= float(number)


def in_turns(
    sides: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Return for each side the median seconds of ``repeats`` calls, in turns; of several, the first is not counted.

    By default CPU time of this process, not wall time: what other processes take from the machine is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + (repeats > 1)):
        for name, call in sides.items():
            began = clock()
            call()
            if turn or repeats == 1:
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    packages = {name: version(name) for name in ("torch", "flwr", "timm", "peft")}
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **packages,
    }


def save(comparisons: list[Comparison], path: Path) -> None:
    """Write the comparisons and the machine as json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(one) | {"passed": one.passed} for one in comparisons]
    path.write_text(json.dumps({"machine": machine(), "comparisons": rows}, indent=1) + "\n", encoding="utf-8")


def table(comparisons: list[Comparison]) -> str:
    """Return the comparisons as a markdown table."""
    lines = ["| what | compared with | that | this | ratio | bar |", "|---|---|---|---|---|---|"]
    for one in comparisons:
        kept = {True: f"{one.bar}: kept", False: f"{one.bar}: **missed**", None: "-"}[one.passed]
        that, this = (f"{value:.4g} {one.unit}" for value in (one.reference_value, one.value))
        lines.append(f"| {one.case} | {one.reference} | {that} | {this} | {one.ratio:.3g} | {kept} |")
    return "\n".join(lines)
