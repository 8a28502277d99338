"""The GPU benchmark with tiny shapes on the CPU."""

from __future__ import annotations

import json
import queue
import threading
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.gpu import actors
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bench import training_work
from benchmarks.gpu.table import gpu_table
from benchmarks.gpu.vit import random_weights

app = typer.Typer()
app.command()(main)
PARTS = ("ceiling", "vit", "language", "truncation", "rounds")


def test_every_part_has_figures_on_a_cpu(tmp_path: Path) -> None:
    to = tmp_path / "gpu.json"
    chosen = [word for part in PARTS for word in ("--only", part)]
    done = CliRunner().invoke(app, ["--device", "cpu", "--tiny", "--to", str(to), *chosen])
    assert done.exit_code == 0, done.output
    runs = json.loads(to.read_text(encoding="utf-8"))["runs"]
    assert [run["error"] for run in runs if "error" in run] == []
    assert {run["part"] for run in runs} == set(PARTS)
    assert all(run["seconds"] > 0 for run in runs)
    (difference,) = (run["difference"] for run in runs if "difference" in run)
    assert difference < 1e-3
    table = gpu_table([*runs, {"part": "actors", "case": "all", "machine": "none", "error": "OSError: a | b"}])
    assert len(table.splitlines()) == 2 + len(runs) + 1
    assert "times PEFT alone" in table
    assert "OSError: a / b" in table


def test_processes_that_share_a_device_report_their_seconds(tmp_path: Path) -> None:
    answers: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
    weights = str(random_weights(tmp_path, actors.NAME, actors.SIDE))
    threads = torch.get_num_threads()
    actors._work(0, (1,), "cpu", weights, True, threading.Barrier(1), answers)
    torch.set_num_threads(threads)
    count, seconds = answers.get_nowait()
    assert count == 1
    assert seconds > 0


def test_operations_of_a_step_are_counted_by_hand() -> None:
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    frozen, factors, attention = 4 * 35, 6 * 2 * (5 + 7), 12 * 11 * 13 * 1
    work = training_work(adapted, rows=17, head_rows=2, length=11, width=13, blocks=1)
    assert work == 17 * (frozen + factors + attention)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 1
    assert "no GPU is visible to torch" in done.output
