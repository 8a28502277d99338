"""The documentation: every link leads somewhere, the site builds, and the library page shows the app that is tested."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

from hyperlora.config.methods import METHODS
from hyperlora.config.schema import config_keys

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def links_of(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for one, other in LINK.findall(text):
        yield one or other


def headings_of(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    wrong = []
    for link in links_of(page):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (heading and heading not in headings_of(target)):
            wrong.append(link)
    assert wrong == []


def test_the_badges_say_what_pyproject_and_the_licence_say() -> None:
    badges = re.findall(
        r"^\[!\[(\w+) ([^\]]+)\]\(https://img\.shields\.io/badge/\1-(\S+)-\w+\)\]",
        (ROOT / "README.md").read_text(),
        flags=re.MULTILINE,
    )
    assert all(unquote(shown).replace("--", "-") == said for _, said, shown in badges)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    flower = next(one for one in project["dependencies"] if one.startswith("flwr["))
    licence = (ROOT / project["license"]["file"]).read_text()
    assert {name: said for name, said, _ in badges} == {
        "Python": project["requires-python"].removeprefix(">=") + "+",
        "Flower": re.search(r">=(\d+\.\d+)\.\d+,<", flower)[1],
        "Licence": "-".join(re.search(r"(Apache) License\s+Version (2\.0)", licence).groups()),
    }


def test_every_method_has_a_row_in_the_page_of_methods() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` ", (ROOT / "docs" / "methods.md").read_text(), flags=re.MULTILINE)
    assert rows == list(METHODS)


def test_pages_of_the_site_link_to_nothing_outside_of_it() -> None:
    docs = ROOT / "docs"
    for page in docs.glob("**/*.md"):
        inner = [link.partition("#")[0] for link in links_of(page) if not link.startswith("http")]
        assert all((page.parent / link).resolve().is_relative_to(docs) for link in inner), page


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install 'hyperlora[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "hyperlora personalize" in (tmp_path / "site" / "tutorial" / "index.html").read_text()


def resolves(name: str) -> bool:
    """Tell whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if find_spec(".".join(parts[:1])) is None:
            return False
        try:
            found: object = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[end:])
    return False


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_function_that_a_page_names_is_there(page: Path) -> None:
    packages = "hyperlora|models|strategies|client_app|server_app"
    names = re.findall(rf"`((?:{packages})(?:\.\w+)+)`", page.read_text(encoding="utf-8"))
    keys = {entry.key for entry in config_keys()}
    assert [name for name in names if name not in keys and not resolves(name)] == []


def test_the_library_page_shows_the_example_that_is_tested() -> None:
    code = (ROOT / "docs" / "examples" / "own_app.py").read_text(encoding="utf-8").rstrip()
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert f"```python\n{code}\n```" in page, "put docs/examples/own_app.py into docs/library.md"


def test_the_head_generator_works_alone_as_the_howto_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- head-lines -->\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert found
    exec(found[1], {})
    without, own = (float(line.split()[0]) for line in capsys.readouterr().out.splitlines())
    assert own > without
    assert own > 0.85
