"""``python -m benchmarks.gpu``: what does a GPU make of local training, of rounds and of the server's truncation?

Every case is measured by itself: one that fails is written down as its error, and the others go on. The file is written
after each of them. ``--device cpu --tiny`` goes through all of it with tiny shapes.
"""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu.bench import Bench, Figures, Part
from benchmarks.gpu.table import gpu_table
from benchmarks.result import current_commit, write_json

RESULT = Path(__file__).parents[1] / "results" / "gpu.json"
BUDGETS = {"ceiling": 5.0, "vit": 40.0, "language": 25.0, "truncation": 15.0, "rounds": 50.0, "actors": 120.0}
"""The parts in their order, and the seconds after which a part begins no other case."""
console = Console()


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu; a GPU by default")] = "",
    tiny: Annotated[bool, typer.Option(help="tiny shapes, to try it on a CPU")] = False,
    only: Annotated[list[str] | None, typer.Option(help="parts; all by default")] = None,
    to: Annotated[Path, typer.Option(help="json file; parts that are not measured stay in it")] = RESULT,
) -> None:
    """Measure the parts in turn and print the table."""
    logging.basicConfig(level=logging.WARNING)
    if not device and not torch.cuda.is_available():
        console.print("no GPU is visible to torch; --device cpu --tiny tries the benchmark with tiny shapes")
        raise typer.Exit(1)
    if unknown := set(only or []) - set(BUDGETS):
        raise typer.BadParameter(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(BUDGETS)}")
    kept = _others(to, only) if only else []
    with tempfile.TemporaryDirectory(prefix="hyperlora-gpu-") as scratch:
        bench = Bench(torch.device(device or "cuda"), tiny, Path(scratch), _known_ceiling(kept))
        found = kept
        for name in only or BUDGETS:
            found = _measure(name, bench, found, to)
    console.print(gpu_table(found), soft_wrap=True)


def _measure(name: str, bench: Bench, found: list[Figures], to: Path) -> list[Figures]:
    """Measure one part, case by case, until its time is over; return what was found before and now."""
    began, machine = time.perf_counter(), machine_name(bench.device)
    try:
        part: Part = import_module(f"benchmarks.gpu.{name}").cases
        for case, measure in part(bench):
            if time.perf_counter() - began > BUDGETS[name]:
                figures: Figures = {"error": f"left out: the part's {BUDGETS[name]:.0f} s were over"}
            else:
                figures = _guarded(measure)
            found = [*found, {"part": name, "case": case, "machine": machine, **figures}]
            _write(found, to)
            console.print(f"{name}, {case}: {figures.get('error') or _said(figures)}", soft_wrap=True)
    except Exception as error:
        found = [*found, {"part": name, "case": "all", "machine": machine, "error": _sentence(error)}]
        _write(found, to)
    console.print(f"{name}: {time.perf_counter() - began:.1f} s", soft_wrap=True)
    return found


def _guarded(measure: Any) -> Figures:
    try:
        figures: Figures = measure()
    except Exception as error:
        return {"error": _sentence(error)}
    return figures


def _sentence(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}"


def _said(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float | int))


def _write(found: list[Figures], to: Path) -> None:
    write_json(to, {"commit": current_commit(), "runs": found})


def _others(to: Path, only: list[str]) -> list[Figures]:
    """Return what a file has of other parts."""
    runs = json.loads(to.read_text(encoding="utf-8"))["runs"] if to.exists() else []
    return [run for run in runs if run["part"] not in only]


def _known_ceiling(kept: list[Figures]) -> float:
    rates = [1e12 * run["rate"] for run in kept if run["part"] == "ceiling" and "bfloat16" in run["case"]]
    return rates[0] if rates else 0.0


def machine_name(device: torch.device) -> str:
    """Return what the device is called, with the versions of the driver and of torch."""
    if device.type != "cuda":
        return f"{platform.machine()} CPU, torch {torch.__version__}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        told = []
    driver = f"driver {told[0]}, " if told else ""
    return f"{torch.cuda.get_device_name(device)}, {driver}torch {torch.__version__}"


if __name__ == "__main__":
    typer.run(main)
