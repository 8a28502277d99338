"""Every command line of the README and the tutorial: those that read a run are run, those that start one are parsed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.suite import load_jobs
from hyperlora.cli.main import app
from hyperlora.cli.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/tutorial.md")
NAMED = ("runs/20261120-153459-hyperlora-seed0", "runs/first", "runs/fedit")
"""The run directories that the pages name; ``runs/...`` is the first of them."""
TESTED_ELSEWHERE = (
    "python3 -m venv",  # .ci/run runs the second, tests/integration/test_cli_run.py what the first starts
    "uv venv",  # needs PyTorch's own index for torch without CUDA
    "pip install --quiet '.[benchmarks]'",  # an extra of pyproject.toml
    "export ",
    "flwr run .",  # tests/integration/test_simulation.py
    "hyperlora demo",  # a server: tests/integration/test_demo_server.py
)


def lines(page: str) -> list[str]:
    """Return the commands of a page's bash blocks, those that go on in the next line in one, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+#\s.*", "", line).removeprefix(".venv/bin/") for line in commands]


def arguments(line: str) -> list[str]:
    """Return what follows the program's name."""
    return [part.replace("runs/...", NAMED[0]) for part in shlex.split(line)[1:]]


ALL = [line for page in PAGES for line in lines(page) if not line.startswith(TESTED_ELSEWHERE)]
STARTING = [line for line in ALL if line.startswith("hyperlora run")]
READING = [line for line in ALL if line.startswith("hyperlora ") and not line.startswith("hyperlora run")]
SUITES = [line for line in ALL if line.startswith("python -m benchmarks ")]


@pytest.fixture(scope="module")
def place(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like the repository to a reader who has made the runs and the files of the pages."""
    path = tmp_path_factory.mktemp("reader")
    for name in NAMED:
        shutil.copytree(short_run, path / name, ignore=shutil.ignore_patterns("exports", "personal"))
    for name in ("pyproject.toml", "benchmarks"):
        (path / name).symlink_to(ROOT / name)
    for name, block in zip(("photos", "reviews"), own_data_files(), strict=True):
        (path / f"{name}.toml").write_text(block)
    return path


def own_data_files() -> list[str]:
    return re.findall(r"```toml\n(data = .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_no_command_line_is_of_a_kind_that_nobody_tests() -> None:
    assert sorted(ALL) == sorted([*STARTING, *READING, *SUITES])
    assert len(STARTING) >= 10
    assert len(READING) >= 12
    assert SUITES


@pytest.mark.parametrize("line", STARTING)
def test_a_line_that_starts_a_run_is_understood(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Settings] = []
    monkeypatch.chdir(place)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("hyperlora.cli.run.check_before", lambda *_, **__: None)  # data and GPU are the reader's
    monkeypatch.setattr("hyperlora.cli.run._expected_clients", lambda config: 20)
    monkeypatch.setattr("hyperlora.cli.run.simulate", lambda settings, size: begun.append(settings))
    outcome = CliRunner().invoke(app, arguments(line))
    assert outcome.exit_code == 0, outcome.output
    [settings] = begun
    assert settings.config.run.resume is ("--resume" in line)


def test_the_lines_that_read_a_run_work_in_their_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for line in READING:
        outcome = CliRunner().invoke(app, arguments(line))
        assert outcome.exit_code == 0 or "doctor" in line, f"{line}: {outcome.output}"  # a machine may lack something
    for name in NAMED[:2]:
        assert (place / name / "report.html").stat().st_size > 50_000
        assert (place / name / "exports" / "rotated-2" / "adapter_model.safetensors").is_file()
        assert {path.name for path in (place / name / "personal" / "my-digits").iterdir()} >= {
            "generated",
            "scores.json",
        }


@pytest.mark.parametrize("line", SUITES)
def test_a_suite_of_the_pages_is_there(line: str) -> None:
    suite, *options = arguments(line)[2:]
    assert load_jobs(suite, dict(option.split("=", 1) for option in options if option != "--set"), [], [])
