from __future__ import annotations

import io
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from hyperlora.cli import app_directory as module
from hyperlora.cli.app_directory import CHECKOUT, app_directory
from hyperlora.cli.settings import app_defaults

OTHER = '[project]\nname = "mine"\n'
APP = "[tool.flwr.app.config]\nseed = 7\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_app_that_is_named_or_stands_here_is_taken(here: Path) -> None:
    (here / "pyproject.toml").write_text(APP)
    with app_directory(None) as found, app_directory(Path("other")) as named:
        assert (found, named) == (here, here / "other")


def test_one_that_cannot_be_read_is_not_passed_over(here: Path) -> None:
    (here / "pyproject.toml").write_text("[tool.flwr")
    with app_directory(None) as found:
        assert found == here


@pytest.mark.parametrize("project", ["", OTHER, "tool = 3\n"])
def test_elsewhere_it_is_the_packages_own(here: Path, project: str, capsys: pytest.CaptureFixture[str]) -> None:
    if project:
        (here / "pyproject.toml").write_text(project)
    with app_directory(None) as found:
        assert found == CHECKOUT
    assert "the one that comes with HyperLoRA is run" in capsys.readouterr().out


def test_that_of_a_wheel_has_the_same_settings_and_packs_no_code(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKOUT", here)
    monkeypatch.setattr(module, "SHIPPED", CHECKOUT)
    with app_directory(None) as found:
        assert app_defaults(found) == app_defaults(CHECKOUT)
        with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(found))) as packed:
            assert set(packed.namelist()) == {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    assert not found.exists()


def test_what_flower_ships_has_every_module_that_the_apps_import() -> None:
    root = Path(__file__).parents[2]
    told = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["fab-include"]
    shipped = {path for pattern in told for path in root.glob(pattern)}
    apps = "import sys, server_app.app, server_app.run, client_app.app"
    listing = f"{apps}\nfor one in list(sys.modules.values()): print(getattr(one, '__file__', None) or '')"
    found = subprocess.run([sys.executable, "-c", listing], cwd=root, capture_output=True, text=True, check=True)
    own = {Path(line) for line in found.stdout.splitlines() if Path(line).is_relative_to(root)}
    parts = ("server_app", "client_app", "strategies", "models", "hyperlora")
    imported = {one for one in own if one.relative_to(root).parts[0] in parts}
    assert len(imported) > 100
    assert imported <= shipped
