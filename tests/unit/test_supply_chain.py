"""What is loaded is data, never code: no pickle, no remote code, commits where a hub is named, bounds on packages."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperlora.data.hub_images import HUB_SETS

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
PRESETS = sorted((ROOT / "benchmarks" / "presets").glob("*.toml"))
SERIALISERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "torch.hub.load", "eval", "exec", "yaml.load"}
CALLS |= {f"torch.serialization.{name}" for name in ("safe_globals", "add_safe_globals")}
FLAGS = {"allow_pickle", "trust_remote_code"}
COMMIT = re.compile(r"[0-9a-f]{40}")


def findings(source: str) -> Iterator[str]:
    """Yield what in a module would load code: imports of serialisers, calls that unpickle, flags that allow it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in SERIALISERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in SERIALISERS:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name, flags = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name in CALLS and (name, flags.get("weights_only")) != ("torch.load", "True"):
                yield name
            yield from (flag for flag in FLAGS & set(flags) if flags[flag] != "False")


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_in_a_package_unpickles_or_runs_what_it_loads(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert {str(path): found for path in files if (found := list(findings(path.read_text())))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.serialization.add_safe_globals([eval])",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert len(list(findings(line))) == 1


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_names_a_commit_or_says_that_none_is_known(path: Path) -> None:
    text = path.read_text()
    preset = tomllib.loads(text)
    places = [preset["model"], *([preset["data"]] if preset["data"]["name"] in HUB_SETS else [])]
    for place in places:
        assert "revision" in place, place["name"]
        assert COMMIT.fullmatch(place["revision"]) or "None is known here" in text


def test_a_data_set_s_commit_is_one_where_there_is_one() -> None:
    assert all(COMMIT.fullmatch(one.revision) for one in HUB_SETS.values() if one.revision)


def bounds() -> dict[str, str]:
    """Return package -> its bounds, of what the project needs to run."""
    parts = (re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.*)", one) for one in PYPROJECT["project"]["dependencies"])
    return {part[1]: part[2] for part in parts if part}


def test_every_package_has_a_lower_and_an_upper_bound() -> None:
    assert all(">=" in bound and ",<" in bound for bound in bounds().values())


@pytest.mark.parametrize("name", ["lowest", "highest"])
def test_the_tested_sets_are_within_the_bounds(name: str) -> None:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    tested = dict(line.partition(" ;")[0].split("==") for line in lines if line and not line.startswith("#"))
    assert set(tested) >= set(bounds())
    for package, bound in bounds().items():
        lower, upper = (re.search(rf"{sign}([\d.]+)", bound)[1] for sign in (">=", "<"))  # type: ignore[index]
        assert _parts(lower) <= _parts(tested[package]) < _parts(upper), package
        assert name == "highest" or _parts(lower) == _parts(tested[package]), package


def _parts(version: str) -> list[int]:
    """Return a version's numbers, without zeros at the end: 2.0 and 2.0.0 are one."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers
