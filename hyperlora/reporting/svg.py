"""Matplotlib figures as inline SVG whose colours are the page's, so that one figure serves light and dark.

A figure is drawn in stand-in colours; each becomes a CSS variable, which the page defines for both schemes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#0a0b01", "#0a0b02"
SERIES = ("#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15", "#0a0b16")
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH, SMALLEST_TEXT = 4.0, 9.0
"""Inches and points: text of this size has 11 px where a phone shows the figure in 352 px."""
VARIABLES = {INK: "--ink", FAINT: "--faint"} | {color: f"--series-{n}" for n, color in enumerate(SERIES, start=1)}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hyperlora",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": SMALLEST_TEXT,
    "lines.linewidth": 1.8,
}


@contextmanager
def canvas(height: float) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure of the page's width and ``height`` inches with one pair of axes, in the page's style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        yield figure, axes


def plain(text: str) -> str:
    """Return a name for a figure to show as it is: matplotlib reads what is between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def tip(number: int) -> str:
    """Return the id (matplotlib's ``gid``) of what shows ``tips[number]`` under the mouse."""
    return f"tip-{number}"


def inline_svg(figure: Figure, name: str, description: str, tips: Sequence[str] = ()) -> str:
    """Return the figure as an ``<svg>`` element.

    Args:
        figure: drawn within :func:`canvas`.
        name: unique on the page; prefix of every id in the element.
        description: what a screen reader says.
        tips: what is shown over the artists whose id is :func:`tip` of the place in ``tips``.
    """
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True, dpi=96)
    text = _cleaned(stream.getvalue())
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    for number, words in enumerate(tips):
        group = f'<g id="{name}-{tip(number)}">'
        text = text.replace(group, f"{group}<title>{escape(words)}</title>", 1)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    label = escape(description, {'"': "&quot;"})
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _cleaned(text: str) -> str:
    """Return the element without a file's head, comments, metadata, its own size and its own typeface."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r'^(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text)
    return re.sub(r"\n\s*", "\n", text)
