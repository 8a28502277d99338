"""Finds sentences that compare methods: a comparing word together with a figure or the name of a method.

What it cannot see: other words for a comparison, comparisons without a figure or a name, tables typed by hand,
headings, code and figures, and the pages that ``APART`` leaves out. It is a net against slips, not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hyperlora.config.methods import METHODS

APART = {
    "docs/results/earlier.md": "superseded; says so on top",
    "docs/performance.md": "seconds, which benchmarks/perf measures",
    "docs/scale.md": "arithmetic, and figures of docs/performance.md",
    "docs/reference/configuration.md": "printed from the settings",
}
WORDS = re.compile(
    r"\b(better|worse|best|worst|beats?|above|below|ahead|behind|level|wins?|won|loses?|lost|costs?|outperforms?|"
    r"higher|lower|faster|slower|as good as|exceeds?|(?:more|less|fewer) (?:accurate|points))\b",
    re.IGNORECASE,
)
FIGURE = re.compile(r"\d(?:\.\d+)? ?(?:%|points?\b|nats\b)|\b\d{2}\.\d\b|\b\d+ and \d+ points")
PLAIN = {"local", "probe", "clustered"}
"""Names of methods that are plain words; they count in backquotes."""
NAMES = re.compile(
    "|".join([*(rf"\b{re.escape(name)}\b" for name in METHODS if name not in PLAIN), *(f"`{name}`" for name in PLAIN)]),
    re.IGNORECASE,
)
SKIPPED = re.compile(r"```.*?```|<!-- results: .*?<!-- /results -->|<!--.*?-->", re.DOTALL)
COMMAND = re.compile(r"`hyperlora [^`+]*`")
LINKS = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def found_in(page: str, text: str) -> list[str]:
    """Return the sentences of a page that compare; none of a page that is left out."""
    return [] if page in APART else [one for one in sentences(text) if compares(one)]


def compares(sentence: str) -> bool:
    """Tell whether a sentence has a comparing word and a figure or the name of a method."""
    sentence = COMMAND.sub("", sentence)
    return bool(WORDS.search(sentence) and (FIGURE.search(sentence) or NAMES.search(sentence)))


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a markdown page, without code, printed blocks, tables and headings."""
    kept = LINKS.sub(r"\1", SKIPPED.sub("\n\n", text))
    lines = ["" if line.startswith(("|", "#")) else line for line in kept.splitlines()]
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines)):
        for sentence in re.split(r"(?<=[.:;!?)*])\s+(?=[A-Z`*])", re.sub(r"^\s*(?:[-*]|\d+\.) ", "", block)):
            if sentence.strip():
                yield sentence.strip()
