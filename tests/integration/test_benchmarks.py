from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.forgetting import checkpoints, turns
from benchmarks.head_parts import WHOLE, head_parts_table, scores
from benchmarks.remembering import AGAIN, AS_TOLD, NOTHING, remembered
from benchmarks.result import load_results
from hyperlora.reporting.run_files import RunFiles

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


def test_heads_made_again_are_those_of_the_run_and_differ_without_a_part(short_run: Path) -> None:
    run = RunFiles.open(short_run)
    told = scores(run)
    accuracy = {part: {one["client_id"]: one["zero_step"] for one in found} for part, found in told.items()}
    own = {one["client_id"]: one["zero_step"] for one in run.scores if one["track"] == "start"}
    assert accuracy[WHOLE] == pytest.approx(own, abs=1e-6)
    as_set = "share and scale by hand, a half each"
    assert accuracy[as_set] == accuracy[WHOLE]
    assert all(
        found != accuracy[WHOLE]
        for part, found in accuracy.items()
        if part not in (WHOLE, as_set, "the generated head alone")
    )
    table = head_parts_table([{"setting": "digits/plain", "seed": 0, "parts": told}])
    assert table.startswith("| in place of what it is | plain, seen | plain, unseen |")
    assert len(table.splitlines()) == 2 + len(told) - 1


def test_what_clients_of_former_domains_tell_again_is_what_the_run_served(short_run: Path) -> None:
    run = RunFiles.open(short_run)
    (last,) = checkpoints(run)[-1:]
    found = remembered(run, [last] * 4, turns([last]))
    former = {one.client_id: one.zero_step for one in last.scores if one.domain != max(turns([last]))}
    assert found[AGAIN] == pytest.approx(former, abs=1e-6)
    assert found[AS_TOLD] == found[AGAIN]
    assert found[NOTHING] != found[AGAIN]
