"""The wheel and the sdist: they build, hold what they must, and the installed wheel works away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.package
SMOKE = """
from pathlib import Path
import hyperlora.reporting.page
assert Path(hyperlora.reporting.page.__file__).is_relative_to(Path({site!r})), hyperlora.reporting.page.__file__
assert "<title>t</title>" in hyperlora.reporting.page.Page("t", "", [], [], []).html()
from typer.testing import CliRunner
from hyperlora.cli.main import app
for command in ("run", "personalize", "demo", "report", "compare", "export", "doctor"):
    outcome = CliRunner().invoke(app, [command, "--help"])
    assert outcome.exit_code == 0, outcome.output
from hyperlora import HyperLoraStrategy, make_client_app
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("build and hatchling are not installed (extra: dev)")
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return target


def test_an_index_would_take_what_was_built(built: Path) -> None:
    files = sorted(map(str, built.iterdir()))
    outcome = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.count("PASSED") == 2


def test_the_sdist_holds_sources_docs_and_tests_and_no_environment(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "docs/tutorial.md", "tests/builders.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "dist"))]


def test_the_wheel_holds_every_package_and_the_assets_of_the_page(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = {
        f"hyperlora/{name}" for name in ("reporting/page.html", "reporting/page.css", "web/page.html", "web/page.js")
    }
    assert {*pages, "hyperlora/cli/main.py", "server_app/run.py"} <= names
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"server_app", "client_app", "strategies", "models", "hyperlora"}


@pytest.fixture(scope="module")
def site(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed."""
    (wheel,) = built.glob("*.whl")
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def python(site: Path, place: Path, *arguments: str, **environment: str) -> str:
    """Run Python in a directory with what is installed and return what it prints."""
    outcome = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(site)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_the_installed_wheel_works_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    python(site, tmp_path, "-c", SMOKE.format(site=str(site)))


def test_the_federation_that_comes_with_it_is_small_and_makes_an_adapter_offline(site: Path, tmp_path: Path) -> None:
    files = [path for path in (site / "hyperlora" / "federations" / "demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2**20
    (tmp_path / "empty").mkdir()
    offline = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}
    command = ("-m", "hyperlora.cli.main", "personalize", "demo", "my-digits", "--sample", "--format", "json")
    made = json.loads(python(site, tmp_path / "empty", *command, **offline))
    assert made["accuracy"][0] > made["anchor_accuracy"][0] > made["majority_accuracy"]
    assert made["num_test"] >= 30
    assert Path(made["directory"]) == tmp_path / "empty" / "personal" / "my-digits"
    assert not list((tmp_path / "cache").rglob("digits-vit*"))


def test_a_run_can_be_set_up_with_nothing_but_the_wheel(site: Path, tmp_path: Path) -> None:
    told = python(site, tmp_path, "-m", "hyperlora.cli.main", "check", "--no-cost", HOME=str(tmp_path / "home"))
    assert "there is no Flower app in this directory" in told
    assert "20 clients hold" in told


@pytest.mark.parametrize(("app", "least"), [(ROOT, 200), (ROOT / "docs" / "baseline", 3)])
def test_flower_packs_an_app_that_loads_and_nothing_else(app: Path, least: int, tmp_path: Path, site: Path) -> None:
    (tmp_path / "app.fab").write_bytes(build_fab_from_disk(app))
    assert (tmp_path / "app.fab").stat().st_size < 2 * 2**20
    with zipfile.ZipFile(tmp_path / "app.fab") as packed:
        names = packed.namelist()
        packed.extractall(tmp_path / "fab")
    assert len(names) >= least
    assert not [
        name for name in names if name.startswith(("tests/", "benchmarks/", "docs/", "docker/", "hyperlora/web"))
    ]
    load = "import server_app.app, client_app.app; server_app.app.app, client_app.app.app"
    python(tmp_path / "fab" if app == ROOT else site, tmp_path, "-c", load)
