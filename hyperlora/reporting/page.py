"""The HTML page of a report: one file, with its style and figures in it and nothing to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Panel:
    """A figure with its title and caption; ``svg`` is trusted markup."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under a title; with ``folded`` they are shown when asked for."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A report; ``tiles`` are the headline figures, each a label and a value, ``terms`` words and what they mean,
    ``advice`` sentences on what to try next."""

    title: str
    subtitle: str
    tiles: Sequence[tuple[str, str]]
    panels: Sequence[Panel]
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    verdict: str = ""
    terms: Sequence[tuple[str, str]] = ()
    advice: Sequence[str] = ()

    def html(self) -> str:
        """Return the page; all text but the figures is escaped."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(_asset("page.html")).render(page=self, style=_asset("page.css"))


def _asset(name: str) -> str:
    return files("hyperlora.reporting").joinpath(name).read_text(encoding="utf-8")
