from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.newcomers import draw_newcomers
from benchmarks.pages import ROOT, Block, filled, pages
from benchmarks.result import HERE, write_json
from benchmarks.suite import SuiteError

RESULTS = HERE / "results"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_of_a_page_is_what_the_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, "run 'python -m benchmarks pages'"


def test_a_block_has_the_named_tables_and_variants_only() -> None:
    page = "a\n<!-- results: digits | tables=accuracy | variants=hyperlora; fedit -->\nold\n<!-- /results -->\nb\n"
    text = filled(page, RESULTS)
    assert text.startswith("a\n")
    assert text.endswith("<!-- /results -->\nb\n")
    assert "old" not in text
    assert [line.split(" | ")[0] for line in text.splitlines() if "±" in line and line.startswith("|")] == [
        "| hyperlora",
        "| fedit",
    ]
    assert "minus" not in text


def test_a_block_may_have_some_seeds_only(tmp_path: Path) -> None:
    for variant, seed, share in (("hyperlora", 10, 0.7), ("hyperlora", 11, 0.9), ("fedit", 10, 0.6)):
        figures = {"zero_step": {"mean": share}, "k_step": {"mean": share}}
        run = {"suite": "pacs/feature", "variant": variant, "seed": seed, "clients": []}
        run["rounds"] = [{"evaluation": {"seen": figures, "unseen": figures}}]
        write_json(tmp_path / ".runs" / "pacs" / "feature" / f"{variant}{seed}.json", run)
    mark = "<!-- results: pacs/feature, pacs/dirichlet-0.5 | variants=hyperlora; fedit{} -->\n<!-- /results -->"
    assert "| hyperlora | 80.0 / 80.0 |" in filled(mark.format(""), tmp_path)
    assert "| hyperlora | 70.0 / 70.0 |" in filled(mark.format(" | seeds=10"), tmp_path)
    assert "fedit" not in filled(mark.format(" | seeds=11"), tmp_path).split("-->")[1]


def test_suites_with_commas_stand_side_by_side() -> None:
    text = filled("<!-- results: digits, default-run | variants=fedit -->\n<!-- /results -->", RESULTS)
    header, _, row = (line for line in text.splitlines() if line.startswith("|"))
    columns = "digits, seen", "digits, unseen", "the default run, seen", "the default run, unseen"
    assert header == f"| {' | '.join(['as received / after K steps', *columns])} |"
    assert row.startswith("| fedit | ")
    assert row.count(" / ") == 4


def test_a_block_without_results_says_so_and_settings_of_a_suite_are_told_apart(tmp_path: Path) -> None:
    mark = "<!-- results: pacs/feature, pacs/dirichlet-0.5 | tables=verdicts | variants=hyperlora; fedit -->\n"
    assert "\nNot measured yet.\n" in filled(f"{mark}<!-- /results -->", tmp_path)
    for variant, share in (("hyperlora", 0.7), ("fedit", 0.6)):
        clients = [
            {"client_id": name, "track": "start", "seen": True, "zero_step": share, "k_step": 0.65} for name in "abc"
        ]
        run = {"suite": "pacs/feature", "variant": variant, "seed": 10, "clients": clients}
        write_json(tmp_path / ".runs" / "pacs" / "feature" / f"{variant}.json", run)
    text = filled(f"{mark}<!-- /results -->", tmp_path)
    assert (
        "- **feature**: Of 3 comparisons (1 seed(s)) hyperlora is above in 2, level in 1, below in 0. "
        "Level: fedit, seen, adapted (+0.0 [+0.0, +0.0])." in text
    )
    assert "- **dirichlet-0.5**: Not measured yet." in text


def test_variants_may_have_commas_and_the_reference_is_the_first() -> None:
    block = Block.parse("digits-ablation | variants=K = 2, rate x 3; no prior")
    assert block.variants == ("K = 2, rate x 3", "no prior")
    assert block.reference == "K = 2, rate x 3"


@pytest.mark.parametrize("wanted", ["digits | tables=nope", "digits | colour=red", "nope"])
def test_a_wrong_mark_is_one_sentence(wanted: str) -> None:
    with pytest.raises(SuiteError, match=r"nope|colour"):
        Block.parse(wanted)


def test_the_first_figure_has_the_paired_difference_to_the_adapted_rival(tmp_path: Path) -> None:
    def run(received: float, adapted: float) -> dict[str, Any]:
        client = {"client_id": "a", "track": "start", "seen": False, "zero_step": received, "k_step": adapted}
        figures = {"zero_step": {"mean": received}, "k_step": {"mean": adapted}}
        return {"seed": 10, "clients": [client], "rounds": [{"evaluation": {"unseen": figures}}]}

    settings = {"feature": {"hyperlora": [run(0.9, 0.9)], "fed-sb": [run(0.7, 0.84)]}, "empty": {}}
    draw_newcomers(settings, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert all(text in drawn for text in ("+6.0", "90.0", "84.0", "70.0", "feature"))
    assert "empty" not in drawn
    draw_newcomers({"empty": {}}, tmp_path / "figure.svg")
    assert "not measured yet" in (tmp_path / "figure.svg").read_text(encoding="utf-8")
