"""The real simulation engine (SuperLink, Ray) through `hyperlora run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_run_in_process import SMALL, metrics_without_times

REPOSITORY = Path(__file__).parents[2]
HYPERLORA = Path(sys.executable).parent / "hyperlora"


def simulate(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    overrides = [part for key, value in SMALL.items() for part in ("-c", f"{key}={value}")]
    command = [str(HYPERLORA), "run", str(REPOSITORY), "--output-dir", str(directory), *overrides, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with a node per client, and what it printed."""
    directory = tmp_path_factory.mktemp("simulation") / "first"
    made = simulate(directory)
    assert made.returncode == 0, made.stdout + made.stderr
    return directory, made.stdout


def test_the_simulation_gives_what_one_process_gives(simulated: tuple[Path, str], short_run: Path) -> None:
    assert metrics_without_times(simulated[0]) == metrics_without_times(short_run)


def test_the_last_lines_say_accuracy_results_and_how_to_go_on(simulated: tuple[Path, str]) -> None:
    directory, output = simulated
    flat = " ".join(output.split())
    assert "accuracy of 16 seen clients" in flat
    assert "accuracy of 4 unseen clients" in flat
    assert directory.name in flat
    assert "hyperlora run --help" in flat
    assert output.splitlines()[-1].startswith("results: /")


@pytest.mark.slow
def test_the_two_nodes_of_a_bare_flwr_run_give_the_same_metrics(short_run: Path, tmp_path: Path) -> None:
    made = simulate(tmp_path / "second", "--supernodes", "2")
    assert made.returncode == 0, made.stdout + made.stderr
    assert metrics_without_times(tmp_path / "second") == metrics_without_times(short_run)


@pytest.mark.slow
def test_a_run_that_fails_ends_with_status_one_and_its_sentence(tmp_path: Path) -> None:
    failed = simulate(tmp_path / "failed", "-c", "lora.rank=65")
    assert failed.returncode == 1
    assert "lora.rank is 65, larger than layer 'attn.qkv'" in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stdout + failed.stderr
