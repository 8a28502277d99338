"""The lock: constraints/highest.txt names every package that the tests run with, at the version that is installed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED_EXTRA = "dev"


def lines_of(name: str) -> list[str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def versions_of(name: str) -> dict[str, Version]:
    """Return package -> the version that a file of constraints has for this platform."""
    pins = [Requirement(line) for line in lines_of(name)]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in here}


LOCK = versions_of("highest")


def brought_by(requirements: list[str], extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """Yield those of a package's requirements that this platform and the extras ask for."""
    for requirement in map(Requirement, requirements):
        environments = [{"extra": extra} for extra in extras | {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(one) for one in environments):
            yield requirement


def installed_for_the_tests() -> dict[str, Version]:
    """Return package -> its installed version, of what the README's test command asks for and all that it brings."""
    waiting = list(brought_by([*PROJECT["dependencies"], *PROJECT["optional-dependencies"][TESTED_EXTRA]]))
    seen: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, Version] = {}
    while waiting:
        one = waiting.pop()
        key = canonicalize_name(one.name), frozenset(one.extras)
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = Version(version(one.name).partition("+")[0])  # torch for the CPU is called 2.15.0+cpu
        waiting += brought_by(distribution(one.name).requires or [], key[1])
    return found


def lowest_set_is_installed() -> bool:
    return all(Version(version(name).partition("+")[0]) == pin for name, pin in versions_of("lowest").items())


def test_every_package_that_the_tests_run_with_is_locked_at_its_version() -> None:
    if lowest_set_is_installed():
        pytest.skip("the set of constraints/lowest.txt is installed")
    try:
        installed = installed_for_the_tests()
    except PackageNotFoundError as missing:
        pytest.fail(f"expected all of '.[{TESTED_EXTRA}]' to be installed, {missing.name} is not; see the README")
    wrong = {name: f"{here}, locked {LOCK.get(name)}" for name, here in installed.items() if LOCK.get(name) != here}
    assert wrong == {}, "make lock, or install the lock's versions by the README's test command"


def test_everything_that_pyproject_asks_for_is_locked_within_its_bounds() -> None:
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][TESTED_EXTRA]]
    for one in map(Requirement, asked):
        assert one.specifier.contains(LOCK[canonicalize_name(one.name)]), one.name


def test_pip_can_read_the_lock_as_constraints() -> None:
    for line in lines_of("highest"):
        pin = Requirement(line)
        assert not pin.extras, line
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), line  # no specifier where there is an address
    assert "make lock" in (ROOT / "constraints" / "highest.txt").read_text().partition("==")[0]


@pytest.mark.parametrize("place", ["README.md", "Makefile", "docker/Dockerfile"])
def test_tests_and_images_are_installed_from_the_lock(place: str) -> None:
    text = (ROOT / place).read_text()
    installs = [line for line in text.splitlines() if f"'.[{TESTED_EXTRA}]'" in line]
    assert all("--constraint constraints/highest.txt" in line for line in installs)
    assert installs or "highest.txt > /tmp/constraints.txt" in text


def test_the_image_leaves_out_flower_alone() -> None:
    pattern = re.search(r"grep -v '(.+?)' highest\.txt", (ROOT / "docker" / "Dockerfile").read_text())
    assert pattern is not None
    assert [line.partition("==")[0] for line in lines_of("highest") if re.match(pattern[1], line)] == ["flwr"]
