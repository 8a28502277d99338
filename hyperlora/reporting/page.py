"""The HTML page of a report: one file, with its style and figures in it and nothing to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str


@dataclass(frozen=True)
class Panel:
    """One figure with its title and caption; ``svg`` is trusted markup."""

    title: str
    svg: str
    caption: str

    @property
    def markup(self) -> Markup:
        """The figure, not to be escaped."""
        return Markup(self.svg)


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
    """A report."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    panels: Sequence[Panel]
    tables: Sequence[Table]
    notes: Sequence[str] = field(default_factory=tuple)

    def html(self) -> str:
        """Return the page; all text but the figures is escaped."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(_asset("page.html"))
        return template.render(page=self, style=Markup(_asset("page.css")))


def _asset(name: str) -> str:
    return files("hyperlora.reporting").joinpath(name).read_text(encoding="utf-8")
