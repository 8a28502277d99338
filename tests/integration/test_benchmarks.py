from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.result import load_results

REPOSITORY = Path(__file__).parents[2]


def benchmark(results: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "smoke", "--results", str(results), "--variant", "fedit"]
    options = ["--variant", "hyperlora", "--set", "federation.rounds=1"]
    return subprocess.run(
        [*command, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_suite_runs_prints_its_tables_and_is_not_run_again(tmp_path: Path) -> None:
    first = benchmark(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "| hyperlora |" in first.stdout
    (result,) = load_results(tmp_path, "smoke")["hyperlora"]
    assert len(result["rounds"]) == 1
    assert result["config"]["federation.rounds"] == 1
    again = benchmark(tmp_path)
    assert "2 of 2 runs are there, 0 to do" in again.stdout
