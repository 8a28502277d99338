"""What the pages say of controls is what their results say."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.bootstrap import Difference, paired_difference
from benchmarks.controls import OURS, RESULT, by_row
from benchmarks.pages import ROOT

ANCHOR = "hyperlora, anchor's head, own head"


def measured(row: str, group: str, column: str, setting: str) -> Difference:
    """Return how far HyperLoRA as received is above a row, in one setting or over all."""
    runs = json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    found = by_row([run for run in runs if setting in run["setting"]])
    difference = paired_difference(found[OURS], found[row], group, ("zero_step", column))
    assert difference is not None
    return difference


@pytest.mark.parametrize(
    ("row", "group", "column", "setting", "verdict", "told"),
    [
        ("fedit", "seen", "k_step", "", "above", "by 1.8 points (seen)"),
        ("fedit", "unseen", "k_step", "", "above", "and 2.4 (unseen)"),
        ("fedit, fitted prior", "seen", "k_step", "", "above", "with that prior by 2.1 and"),
        ("fedit, fitted prior", "unseen", "k_step", "", "above", "and 2.3 (all settings)"),
        ("hyperlora, newest anchor", "seen", "zero_step", "", "level", "+0.1 (-0.3 to +0.5)"),
        ("hyperlora, newest anchor", "unseen", "zero_step", "", "level", "+1.0 (-0.0 to +2.9)"),
        ("fedit, own head", "seen", "zero_step", "", "above", "+1.3 (+0.4 to +2.2)"),
        ("fedit, own head", "unseen", "zero_step", "", "above", "+1.4 (+0.6 to +2.3)"),
        ("fedit, own head", "seen", "zero_step", "dirichlet-0.1", "level", "level at Dirichlet 0.1"),
        ("fedit, own head", "unseen", "zero_step", "dirichlet-0.1", "level", "level at Dirichlet 0.1"),
        ("fedit, own head", "unseen", "zero_step", "dirichlet-0.5", "level", "unseen clients, at Dirichlet 0.5"),
        ("fedit, own head", "seen", "zero_step", "dirichlet-0.5", "above", ""),
        ("fed-sb, own head", "seen", "zero_step", "", "above", "by 0.9 (0.2 to 1.6)"),
        ("fed-sb, own head", "unseen", "zero_step", "", "level", "0.8 (-0.1 to +1.8)"),
        (ANCHOR, "seen", "zero_step", "", "above", "1.3 points lower (0.3 to 2.4)"),
        (ANCHOR, "unseen", "zero_step", "", "above", "1.4 (0.5 to 2.4)"),
        (ANCHOR, "seen", "zero_step", "dirichlet-0.1", "level", "at Dirichlet 0.1 it is level"),
        (ANCHOR, "unseen", "zero_step", "dirichlet-0.1", "level", "at Dirichlet 0.1 it is level"),
        ("hyperlora, own head", "seen", "zero_step", "", "level", "level over all settings"),
        ("hyperlora, own head", "unseen", "zero_step", "", "level", "level over all settings"),
        ("hyperlora, own head", "seen", "zero_step", "feature", "above", "(0.4 to 2.3)"),
        ("hyperlora, own head", "unseen", "zero_step", "feature", "above", "(0.2 to 2.5)"),
    ],
)
def test_a_figure_of_the_page_is_the_results(
    row: str, group: str, column: str, setting: str, verdict: str, told: str
) -> None:
    found = measured(row, group, column, setting)
    assert found.verdict == verdict
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert told in page
    stated = re.findall(r"-?\d\.\d", re.sub(r"Dirichlet \d\.\d", "", told))
    assert set(stated) <= {f"{one:.1f}" for one in (found.mean, found.low, found.high)}
