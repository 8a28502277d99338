"""``python -m benchmarks claims``: every comparative sentence that a person wrote, and whether the result files say so.

``benchmarks/claims.toml`` has an entry for each comparison of a sentence of README.md or docs/: the page, the sentence
as it stands there, whose runs are compared on which clients, and what is stated. It is held against the packed results
by the paired intervals of :mod:`benchmarks.bootstrap`. :mod:`benchmarks.comparatives` looks for sentences without one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.bootstrap import Difference, Runs, paired_difference
from benchmarks.comparatives import found_in
from benchmarks.pages import ROOT, of_one_fingerprint, pages
from benchmarks.result import load_settings
from benchmarks.suite import split_name

FILE = Path(__file__).parent / "claims.toml"
FIGURES = {"as received": "zero_step", "adapted": "k_step"}
Column = Literal["as received", "adapted"]


class Claim(BaseModel):
    """One comparison that a sentence makes.

    Attributes:
        page: path of the page in the repository.
        sentence: part of the page's text that makes the comparison; line breaks do not count.
        suite, variant: whose runs it is about, as ``pacs/feature`` and ``hyperlora``.
        rival, rival_suite: whose they are compared with; the same suite where nothing is said.
        group: clients that trained or that never did.
        column, rival_column: the figure of a client; the same for the rival where nothing is said.
        verdict: what the sentence says: the interval is above zero, below it, or holds it.
        points: mean difference as the sentence has it, to its number of decimals; only where it names one.
        interval: the same for the ends of the interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    page: str
    sentence: str
    suite: str
    variant: str
    rival: str
    rival_suite: str = ""
    group: Literal["seen", "unseen"]
    column: Column
    rival_column: Column | None = None
    verdict: Literal["above", "level", "below"]
    points: str = ""
    interval: tuple[str, str] | None = None

    @property
    def comparison(self) -> str:
        """Return the comparison as a line of the list names it."""
        left = f"{self.suite}: {self.variant}, {self.group}, {self.column}"
        return f"{left} against {self.rival_suite} {self.rival} {self.rival_column or ''}".replace("  ", " ").strip()


class Apart(BaseModel):
    """A sentence that the guard takes for a comparison of methods and that is none, or that other files back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    page: str
    sentence: str
    why: str


class Claims(BaseModel):
    """The content of ``claims.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: tuple[Claim, ...] = ()
    apart: tuple[Apart, ...] = ()


def read_claims(path: Path = FILE) -> Claims:
    """Return what a claims file says; raises pydantic's ValidationError where it is not one."""
    return Claims.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def measured(claim: Claim, results: Path) -> Difference | None:
    """Return the difference that the files have, None where they have no such runs."""
    left = _runs(results, claim.suite, claim.variant)
    right = _runs(results, claim.rival_suite or claim.suite, claim.rival)
    columns = FIGURES[claim.column], FIGURES[claim.rival_column or claim.column]
    return paired_difference(left, right, claim.group, columns)


def faults_of(claim: Claim, text: str, difference: Difference | None) -> list[str]:
    """Return what is wrong with a claim, as sentences: on its page, in what it states, in what the files say."""
    faults = [] if flat(claim.sentence) in flat(text) else [f"{claim.page} has no such sentence"]
    stated = [one for one in (claim.points, *(claim.interval or ())) if one]
    faults += [f"the sentence does not say {one}" for one in stated if one.lstrip("+-") not in claim.sentence]
    if claim.verdict == "level" and "level" not in claim.sentence:
        faults.append("the files' word for it is level, the sentence has another")
    if difference is None:
        return [*faults, "there are no such results"]
    if difference.verdict != claim.verdict:
        faults.append(f"stated {claim.verdict}, the files say {difference}")
    found = (difference.mean, difference.low, difference.high)
    for one, value in zip((claim.points, *(claim.interval or ())), found, strict=False):
        if one and f"{value:+.{_decimals(one)}f}" != one:
            faults.append(f"stated {one}, the files say {value:+.{_decimals(one)}f}")
    return faults


def check(claims: Claims, texts: Mapping[str, str], results: Path) -> tuple[list[str], list[str]]:
    """Return two lines for every claim with what the files say, and the faults: of claims and of sentences without one.

    Args:
        claims: what is claimed.
        texts: the pages by path in the repository.
        results: folder of the packed results.
    """
    lines, faults = [], []
    for claim in claims.claim:
        difference = measured(claim, results)
        wrong = faults_of(claim, texts.get(claim.page, ""), difference)
        says = f"stated {claim.verdict} {claim.points}".strip()
        lines.append(f"{'NO ' if wrong else 'yes'} {claim.comparison}: {says}; measured {difference}")
        lines.append(f"    {claim.page}: {flat(claim.sentence)}")
        faults += [f"{claim.page}: '{flat(claim.sentence)}': {one}" for one in wrong]
    return lines, [*faults, *loose_sentences(claims, texts)]


def loose_sentences(claims: Claims, texts: Mapping[str, str]) -> list[str]:
    """Return faults: sentences that compare and are in no claim, and what is set apart and not there."""
    known: dict[str, list[str]] = {}
    entries: tuple[Claim | Apart, ...] = (*claims.claim, *claims.apart)
    for entry in entries:
        known.setdefault(entry.page, []).append(flat(entry.sentence))
    faults = [
        f"{one.page} has no sentence '{flat(one.sentence)}', which is set apart"
        for one in claims.apart
        if flat(one.sentence) not in flat(texts.get(one.page, ""))
    ]
    for page, text in texts.items():
        faults += [
            f"{page}: compares and stands in no claim: '{one}'"
            for one in map(flat, found_in(page, text))
            if not any(listed in one or one in listed for listed in known.get(page, []))
        ]
    return faults


def repository_texts() -> dict[str, str]:
    """Return README.md and everything in docs/ by path in the repository."""
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages()}


def flat(text: str) -> str:
    """Return a text in one line, without marks of emphasis."""
    return re.sub(r"\s+", " ", text.replace("**", "")).strip()


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


@cache
def _file(results: Path, name: str) -> Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]:
    return {suite: of_one_fingerprint(found)[0] for suite, found in load_settings(results, name).items()}


def _runs(results: Path, suite: str, variant: str) -> Runs:
    return _file(results, split_name(suite)[0]).get(suite, {}).get(variant, [])
