"""The real simulation engine (SuperLink, Ray) through `hyperlora run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_run_in_process import SMALL, make_run, metrics_without_times

REPOSITORY = Path(__file__).parents[2]
HYPERLORA = Path(sys.executable).parent / "hyperlora"


def simulate(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    overrides = [part for key, value in SMALL.items() for part in ("-c", f"{key}={value}")]
    command = [str(HYPERLORA), "run", str(REPOSITORY), "--output-dir", str(directory), *overrides, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """One run with a node per client and one with the two nodes that a bare `flwr run .` has."""
    root = tmp_path_factory.mktemp("simulation")
    first = simulate(root / "first")
    assert first.returncode == 0, first.stdout + first.stderr
    second = simulate(root / "second", "--supernodes", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    return root / "first", root / "second", first.stdout


def test_the_same_seed_gives_the_same_metrics_with_ray(twice: tuple[Path, Path, str]) -> None:
    first, second, _ = twice
    assert metrics_without_times(first) == metrics_without_times(second)


def test_the_simulation_gives_what_one_process_gives(twice: tuple[Path, Path, str], tmp_path: Path) -> None:
    assert metrics_without_times(twice[0]) == metrics_without_times(make_run(tmp_path / "local"))


def test_the_last_lines_say_accuracy_results_and_how_to_go_on(twice: tuple[Path, Path, str]) -> None:
    first, _, output = twice
    flat = " ".join(output.split())
    assert "accuracy of 16 seen clients" in flat
    assert "accuracy of 4 unseen clients" in flat
    assert first.name in flat
    assert "hyperlora run --help" in flat


def test_a_run_that_fails_ends_with_status_one_and_its_sentence(tmp_path: Path) -> None:
    failed = simulate(tmp_path / "failed", "-c", "lora.rank=65")
    assert failed.returncode == 1
    assert "lora.rank is 65, larger than layer 'attn.qkv'" in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stdout + failed.stderr
