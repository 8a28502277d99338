"""The report of a run and the comparison of several, as numbers and as pages."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from hyperlora.cli.main import app
from hyperlora.cli.output import fitted_table
from hyperlora.newcomer import start_for
from hyperlora.reporting.advice import NOTHING, advice
from hyperlora.reporting.client_bars import clients_panel
from hyperlora.reporting.comparison import SUMMARY, comparison_page
from hyperlora.reporting.figures import STEPS, comparison_figures, failures, gains, labels_of, totals
from hyperlora.reporting.page import Page, Table
from hyperlora.reporting.panels import draw_accuracy, draw_signatures
from hyperlora.reporting.report import report_page
from hyperlora.reporting.run_files import RunFiles, RunFilesError, new_directory
from hyperlora.reporting.signature_map import SignatureMap
from hyperlora.reporting.state_view import spectrum, view_state
from hyperlora.reporting.verdict import interval
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from strategies.engine.checkpoint import OldRunError
from tests.builders import make_card
from tests.synthetic_run import make_synthetic_run

PANELS = (
    "Accuracy over rounds",
    "What each client has",
    "What a personal adapter is worth",
    "Map of signatures",
    "Attention between clients",
    "Singular values",
    "Traffic",
    "Time",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return RunFiles.open(make_synthetic_run(tmp_path_factory.mktemp("runs") / "ours", clients=20, rounds=6))


@pytest.fixture(scope="module")
def fedit(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    directory = tmp_path_factory.mktemp("runs") / "fedit"
    return RunFiles.open(make_synthetic_run(directory, clients=20, rounds=6, method="fedit"))


def invoke(*arguments: object, status: int = 0) -> str:
    outcome = CliRunner().invoke(app, [str(one) for one in arguments])
    assert outcome.exit_code == status, outcome.output
    return outcome.output


@pytest.mark.parametrize("command", ["report", "compare"])
def test_figures_are_printed_or_a_page_is_written(command: str, run: RunFiles, tmp_path: Path) -> None:
    said = invoke(command, run.path, "--format", "json", "--to", tmp_path / "page.html", status=1)
    assert "leave out --to" in said
    assert not (tmp_path / "page.html").exists()


def test_a_run_of_100_clients_and_100_rounds_makes_a_page_under_3_megabytes(tmp_path: Path) -> None:
    directory = make_synthetic_run(tmp_path / "large", clients=100, rounds=100)
    invoke("report", directory)
    page = (directory / "report.html").read_bytes()
    assert len(page) < 3_000_000
    assert all(title.encode() in page for title in PANELS)


def test_a_page_fetches_nothing(run: RunFiles) -> None:
    page = report_page(run).html()
    assert not re.findall(r"<(?:script|iframe|object|embed)\b|@import|<link(?! rel=\"icon\" href=\"data:)", page)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r"\b(?:src|href)=\"([^\"]*)\"", page))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", page))


def test_every_id_of_a_page_is_unique_and_every_reference_has_its_id(run: RunFiles) -> None:
    page = report_page(run).html()
    ids = re.findall(r"\bid=\"([^\"]*)\"", page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:href=\"#|url\(#)([^\")]*)", page)) <= set(ids)


def test_figures_take_their_colours_from_the_page(run: RunFiles) -> None:
    page = report_page(run).html()
    assert "#0a0b" not in page
    assert {"var(--ink)", "var(--series-1)", "var(--series-2)"} <= set(re.findall(r"var\(--[a-z0-9-]+\)", page))
    used, defined = set(re.findall(r"var\((--[a-z0-9-]+)\)", page)), set(re.findall(r"(--[a-z0-9-]+): #", page))
    assert used <= defined


def test_a_method_without_attention_or_anchor_scores_has_no_empty_panel(fedit: RunFiles) -> None:
    titles = [panel.title for panel in report_page(fedit).panels]
    curves = [f"Accuracy over rounds, {group} clients" for group in ("seen", "unseen")]
    assert titles == [*curves, "What each client has", "Map of signatures", "Singular values", "Traffic", "Time"]


def test_a_report_against_fedit_pairs_each_client_with_itself_and_marks_who_is_unseen(
    run: RunFiles, fedit: RunFiles, tmp_path: Path
) -> None:
    raised = tmp_path / "raised"
    shutil.copytree(run.path, raised)
    scores = json.loads((raised / "evaluation.json").read_text())
    for one in scores:
        one["zero_step"] += 0.02 if one["seen"] else -0.01
    (raised / "evaluation.json").write_text(json.dumps(scores))
    page = report_page(RunFiles.open(raised), fedit)
    panels = {panel.title: panel.svg for panel in page.panels}
    assert all(f"What each client gains over fedit, {words}" in panels for words in STEPS.values())
    assert [row[:4] for row in page.tables[0].rows] == [
        ("seen", "as received", "16", "+2.0"),
        ("unseen", "as received", "4", "-1.0"),
        ("seen", "after local steps", "16", "+0.0"),
        ("unseen", "after local steps", "4", "+0.0"),
    ]
    assert page.tables[0].rows[0][4:] == ("+2.0 to +2.0", "16", "0", "0")
    figure = panels["What each client gains over fedit, as received"]
    assert figure.count("fill: var(--series-1); stroke: var(--series-1)") == 16 + 1  # points and legend
    assert figure.count("fill-opacity: 0; stroke: var(--series-2)") == 4 + 1
    printed = json.loads(invoke("report", raised, "--against", fedit.path, "--format", "json"))
    assert printed["paired"]["gain"]["zero_step"]["photo-0"] == pytest.approx(0.02)


def test_runs_over_other_data_are_not_paired(run: RunFiles, tmp_path: Path) -> None:
    other = make_synthetic_run(tmp_path / "other", clients=4, rounds=2, method="fedit", seed=1)
    said = invoke("report", run.path, "--to", tmp_path / "page.html", "--against", other, status=1)
    assert "do not hold the same data, so they cannot be paired: seed differ" in said


def test_nodes_that_were_left_out_are_among_the_faults(run: RunFiles, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "left_out.json").write_text(json.dumps({"node 7": "this node has another backbone"}))
    faults = next(table for table in report_page(RunFiles.open(tmp_path / "run")).tables if "Faults" in table.title)
    assert faults.rows[0] == ("joining", "this node has another backbone", "1", "node 7", "all")
    assert len(faults.rows) == 2


def test_a_run_that_goes_on_is_reported_as_far_as_it_came(run: RunFiles, tmp_path: Path) -> None:
    for name in ("config.json", "environment.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(lines[0] + lines[1][:40])
    page = report_page(RunFiles.open(tmp_path))
    assert [panel.title for panel in page.panels] == ["Traffic", "Time"]
    assert "made 1 of 6 rounds so far" in page.notes[0]


def test_a_run_of_an_older_version_is_refused_by_report_and_personalize(run: RunFiles, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "old")
    for path in (tmp_path / "old" / "checkpoints").iterdir():
        path.rename(path.with_suffix(".safetensors"))
    assert "was made by an older version" in " ".join(invoke("report", tmp_path / "old", status=1).split())
    old = RunFiles.open(tmp_path / "old")
    with pytest.raises(OldRunError, match="was made by an older version of hyperlora"):
        start_for(old, next(iter(old.require_clients().cards.values())))


def test_what_clients_call_themselves_is_escaped() -> None:
    table = Table("Clients", ("client",), [("<script>alert(1)</script>",)])
    page = Page("a <b>", "c", [], [], [table]).html()
    assert "<script>" not in page
    assert "<b>" not in page


@pytest.mark.parametrize("domain", [r"$\frac{$", "$x$", "a$b", r"\$", "$$"])
def test_a_domain_is_drawn_as_it_is_written(run: RunFiles, tmp_path: Path, domain: str) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    for name in ("clients.json", "evaluation.json"):
        path = tmp_path / "run" / name
        path.write_text(path.read_text().replace('"cartoon"', json.dumps(domain)))
    page = report_page(RunFiles.open(tmp_path / "run")).html()
    assert domain in unescape(page)


FILES = ("config.json", "environment.json", "evaluation.json", "clients.json", "metrics.jsonl", "left_out.json")
CONTENTS = ("", "{", "[]", "{}", "[1]", "null", '{"server_round": "x"}', '{"a": 1}', "\xff", "[" * 100_000)
HARMLESS = (("evaluation.json", "[]"), ("config.json", "{}"), ("left_out.json", "{}"), ("left_out.json", CONTENTS[6]))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_file_is_one_sentence_that_names_it(run: RunFiles, tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(f"{content}\n".encode("latin-1"))
    outcome = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--to", str(tmp_path / "page.html")])
    if outcome.exit_code == 0:
        assert (name, content) in HARMLESS
    else:
        assert isinstance(outcome.exception, SystemExit), outcome.exception
        assert outcome.output.count("\n") < 8


def test_attention_has_a_row_for_every_client_and_a_column_for_every_seen_one(run: RunFiles) -> None:
    view = view_state(run)
    assert view is not None
    assert view.attention is not None
    assert view.attention.shape == (20, 16)
    torch.testing.assert_close(view.attention.sum(dim=1), torch.ones(20))


def test_a_spectrum_is_that_of_the_scaled_products() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(3, 7, 2, generator=generator), torch.randn(3, 2, 5, generator=generator))
    expected = 2.0 * torch.linalg.svdvals(factors.product())[:, :2].mean(dim=0)
    torch.testing.assert_close(spectrum(Adapter({"fc": factors}, torch.zeros(2, 3)), 2.0)["fc"], expected)


def test_the_map_of_signatures_keeps_distances_of_a_plane() -> None:
    cards = [make_card(f"client-{index}", seed=index % 3) for index in range(6)]
    found = SignatureMap.of(cards)
    points, shares = found.places([card.signature for card in cards]), found.shares
    assert shares.sum() == pytest.approx(1.0)
    assert points[0] == pytest.approx(points[3])
    assert abs(points[0] - points[1]).max() > 0.1


def test_one_signature_alone_can_be_projected() -> None:
    card = make_card("only")
    found = SignatureMap.of([card])
    points, shares = found.places([card.signature]), found.shares
    assert points.tolist() == [[0.0, 0.0]]
    assert shares.tolist() == [0.0, 0.0]


def test_failures_are_counted_by_reason() -> None:
    records = [
        {"server_round": 1, "failures": {"train b": "late", "evaluate a": "late"}},
        {"server_round": 2, "failures": {"train a": "late"}, "missing_sums": {"moments": "too few"}},
    ]
    assert failures(records) == [
        {"phase": "train", "reason": "late", "count": 2, "clients": ["a", "b"], "rounds": [1, 2]},
        {"phase": "evaluate", "reason": "late", "count": 1, "clients": ["a"], "rounds": [1]},
        {"phase": "sum of moments", "reason": "too few", "count": 1, "clients": [], "rounds": [2]},
    ]


def test_a_gain_is_of_the_clients_that_both_have() -> None:
    assert gains({"a": {"zero_step": 0.75}, "b": {"zero_step": 0.5}}, {"a": {"zero_step": 0.5}}) == {"a": 0.25}


def test_totals_add_up_what_not_every_round_has() -> None:
    assert totals([{"bytes": {"up": 2}}, {"bytes": {"up": 1, "down": 4}}], "bytes") == {"up": 3, "down": 4}


def test_gains_of_a_comparison_are_over_fedit_wherever_it_stands(run: RunFiles, fedit: RunFiles) -> None:
    for runs in ([run, fedit], [fedit, run]):
        figures = comparison_figures(runs)
        assert figures["base"] == "fedit"
        assert list(figures["gain_over_base"]) == ["ours"]
    page = comparison_page([run, fedit])
    assert page.panels[-1].title == "What each client gains over fedit"
    gains, differing = page.tables[1], page.tables[2]
    assert [tuple(row)[:4] for row in gains.rows] == [("ours", "seen", "16", "+0.0"), ("ours", "unseen", "4", "+0.0")]
    assert ("method", "hyperlora", "fedit") in [tuple(row) for row in differing.rows]
    assert page.panels[-1].svg.count("<title>ours/") == 20


def test_runs_on_other_data_are_named_and_no_client_is_set_against_another(run: RunFiles, tmp_path: Path) -> None:
    other = make_synthetic_run(tmp_path / "other", clients=20, rounds=2, method="fedit", seed=1)
    said = invoke("compare", run.path, other)
    assert "The clients of ours are not those of other (seed differ)" in said
    figures = json.loads(invoke("compare", run.path, other, "--format", "json"))
    assert (figures["base"], figures["gain_over_base"]) == ("other", {})


def test_a_comparison_writes_nothing_that_was_not_asked_for(
    run: RunFiles, fedit: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "ours" in invoke("compare", run.path, fedit.path)
    assert list(tmp_path.iterdir()) == []


def test_every_client_of_the_map_is_named_under_the_mouse(run: RunFiles) -> None:
    assert run.clients is not None
    svg = draw_signatures(list(run.clients.cards.values()), "map")
    assert all(svg.count(f"<title>{name}</title>") == 1 for name in run.clients.cards)


def test_equal_runs_are_told_apart_by_number(run: RunFiles) -> None:
    assert labels_of([run, run]) == [f"{run.name} (1)", f"{run.name} (2)"]


def test_compare_prints_json_that_a_script_reads(run: RunFiles, fedit: RunFiles) -> None:
    figures = json.loads(invoke("compare", run.path, fedit.path, "--format", "json"))
    assert [one["method"] for one in figures["runs"]] == ["hyperlora", "fedit"]
    assert figures["runs"][0]["accuracy"]["unseen"]["zero_step"]["mean"] == pytest.approx(0.8 - 0.5 / 6)


def test_compare_writes_a_page_and_prints_a_table(run: RunFiles, fedit: RunFiles, tmp_path: Path) -> None:
    said = invoke("compare", run.path, fedit.path, "--to", tmp_path / "page.html")
    assert "71.7 %" in said
    assert "Unseen clients, as received" in (tmp_path / "page.html").read_text()


def test_the_run_that_latest_points_to_is_compared_once(run: RunFiles, fedit: RunFiles, tmp_path: Path) -> None:
    for name, path in (("a", run.path), ("b", fedit.path)):
        (tmp_path / name).symlink_to(path)
    (tmp_path / "latest").symlink_to("b")
    said = invoke("compare", *(tmp_path / name for name in ("a", "b", "latest")), "--format", "json")
    assert len(json.loads(said)["runs"]) == 2


def test_one_run_alone_is_no_comparison(run: RunFiles) -> None:
    assert "needs two runs or more" in invoke("compare", run.path, status=1)


def test_report_prints_json_and_writes_no_page(run: RunFiles) -> None:
    figures = json.loads(invoke("report", run.path, "--format", "json"))
    assert figures["rounds"] == 6
    assert figures["gain_over_anchor"]["photo-0"] == pytest.approx(0.1)
    assert not (run.path / "report.html").exists()


def test_a_directory_without_rounds_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunFilesError, match="has no round yet"):
        RunFiles.open(tmp_path)


def test_one_evaluation_has_one_whole_tick_and_the_axis_fits(run: RunFiles) -> None:
    point = [{"round": 5, "mean": 0.62, "std": 0.1}]
    svg = draw_accuracy({"seen zero_step": point, "seen k_step": [{"round": 5, "mean": 0.74, "std": 0.1}]}, "a")
    ticks = re.findall(r"<text[^>]*>([\d.]+)</text>", svg)
    assert ticks[0] == "5"
    assert set(ticks[1:]) <= {"50", "55", "60", "65", "70", "75", "80"}


def test_every_column_of_the_clients_has_a_header_and_small_samples_an_interval(run: RunFiles) -> None:
    page = report_page(run)
    clients = next(table for table in page.tables if table.title == "Clients")
    assert all(clients.columns)
    assert {len(row) for row in clients.rows} == {len(clients.columns)}
    assert re.fullmatch(r"\d+ to \d+", clients.rows[0][5])
    assert page.verdict.startswith("On their own test data")
    assert {term for term, _ in page.terms} >= {"anchor", "as received", "probing"}
    assert "What the words mean" in page.html()


def test_the_report_names_who_is_served_worst_and_why_and_which_classes_are(run: RunFiles, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    lowest = next(one for one in scores if one["client_id"] == "photo-1")
    lowest |= {"zero_step": 0.1, "class_hits": [4, 0, 0]}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(scores))
    clients = json.loads((tmp_path / "run" / "clients.json").read_text())
    card = next(one for one in clients["clients"] if one["client_id"] == "photo-1")
    card |= {"num_examples": 3, "signature": [50.0, *card["signature"][1:]]}
    (tmp_path / "run" / "clients.json").write_text(json.dumps(clients))
    tables = {table.title: table for table in report_page(RunFiles.open(tmp_path / "run")).tables}
    first = tables["Clients that are served worst"].rows[0]
    assert first[:3] == ("photo-1", "unseen" if not lowest["seen"] else "seen", "10.0")
    assert first[4:6] == ("3", "one (4 of 20), two (0 of 12), three (0 of 8)")
    assert all(words in first[6] for words in ("few training samples", "far from all others", "better with the anchor"))
    by_class = tables["Accuracy by class"].rows
    assert sorted(row[0] for row in by_class) == ["one", "three", "two"]
    assert by_class[0][1:4] == ("160", "0.0", "0.0")


def test_a_run_whose_clients_keep_their_classes_has_no_table_of_them(run: RunFiles, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    kept = [{name: value for name, value in one.items() if not name.startswith("class_")} for one in scores]
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(kept))
    page = report_page(RunFiles.open(tmp_path / "run"))
    assert "Accuracy by class" not in [table.title for table in page.tables]
    worst = next(table for table in page.tables if table.title == "Clients that are served worst")
    assert worst.rows[0][5] == "-"


def test_a_new_directory_is_gone_again_where_what_fills_it_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "made") as made:
        shutil.copy(tmp_path / "missing", made)
    assert not (tmp_path / "made").exists()


NAMES = ("20261126-115109-hyperlora-seed0", "20261126-115109-hyperlora-seed1", "notes/a run (1)")


@pytest.mark.parametrize("width", [80, 200])
def test_names_of_runs_stand_whole_on_a_narrow_terminal(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    rows = [(name, "hyperlora", *["81.2 %"] * 4, "1123.4", "1:05") for name in NAMES]
    with console.capture() as printed:
        console.print(fitted_table(SUMMARY, rows, console))
    lines = printed.get().splitlines()
    assert all(len(line) <= width for line in lines)
    named = "".join(line[: max(map(len, NAMES)) if width == 200 else 12].rstrip() for line in lines)
    assert all(name.replace(" ", "") in named.replace(" ", "") for name in NAMES)
    assert "…" not in printed.get()


def changed(run: RunFiles, directory: Path, change: Callable[[dict[str, Any]], None]) -> RunFiles:
    """Return a copy of a run of which every score was changed."""
    shutil.copytree(run.path, directory)
    scores = json.loads((directory / "evaluation.json").read_text())
    for one in scores:
        change(one)
    (directory / "evaluation.json").write_text(json.dumps(scores))
    return RunFiles.open(directory)


def test_each_client_has_a_bar_with_its_number_of_samples_and_their_interval(run: RunFiles, tmp_path: Path) -> None:
    def few(score: dict[str, Any]) -> None:
        score["num_test"] = 13 if score["client_id"] == "photo-0" else 400

    panel = clients_panel(changed(run, tmp_path / "run", few))
    assert panel is not None
    assert "photo-0 (13)" in panel.svg
    low, high = interval(next(one["zero_step"] for one in run.scores if one["client_id"] == "photo-0"), 13)
    assert f"13 test samples, {100 * low:.0f} to {100 * high:.0f}" in panel.svg
    assert panel.svg.count(" of 400 test samples, ") == 19


def test_of_many_clients_the_lowest_have_a_bar_and_the_page_says_so(tmp_path: Path) -> None:
    panel = clients_panel(RunFiles.open(make_synthetic_run(tmp_path / "run", clients=30, rounds=2)))
    assert panel is not None
    assert panel.svg.count(" test samples, ") == 24
    assert "The 24 lowest of 30" in panel.caption


def test_a_personal_adapter_has_a_paired_interval_over_clients(run: RunFiles, tmp_path: Path) -> None:
    def lower(score: dict[str, Any]) -> None:
        if score["track"] == "start" and not score["seen"]:
            score["zero_step"] -= 0.2 if score["client_id"] == "photo-3" else 0.12

    page = report_page(changed(run, tmp_path / "run", lower))
    table = next(table for table in page.tables if table.title.startswith("What a personal adapter is worth"))
    seen, unseen = (tuple(row) for row in table.rows)
    assert seen == ("seen", "as received", "16", "+10.0", "+10.0 to +10.0", "16", "0", "0")
    assert unseen[2] == "4"
    low, high = (float(bound) for bound in unseen[4].split(" to "))
    assert low <= float(unseen[3]) <= high
    assert any(
        f"made for unseen clients is {-float(unseen[3]):.1f} points below the anchor" in one for one in page.advice
    )


def test_what_to_try_next_follows_from_the_run(run: RunFiles, tmp_path: Path) -> None:
    said = " ".join(advice(run))
    assert "The curve of seen clients still rises (+4.2 points" in said
    assert "-c federation.rounds=12" in said
    assert "Classes below the 56 % over all: three (0 % of 160)" in said
    assert "Local steps help seen clients (+5.0 points" in said
    assert "below the anchor" not in said
    assert "Far from" not in said
    assert "Few training samples" not in said

    def even(score: dict[str, Any]) -> None:
        score |= {"k_step": score["zero_step"], "class_samples": [], "class_hits": [], "num_test": 400}

    flat = changed(run, tmp_path / "flat", even)
    lines = [json.loads(line) for line in (flat.path / "metrics.jsonl").read_text().splitlines()]
    for one in lines:
        one["evaluation"] = one["evaluation"] and lines[1]["evaluation"]
    (flat.path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert advice(RunFiles.open(flat.path)) == [NOTHING]


def test_a_curve_that_falls_is_told_with_its_best_round(run: RunFiles, tmp_path: Path) -> None:
    copy = changed(run, tmp_path / "run", lambda score: None)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    lines[1]["evaluation"], lines[5]["evaluation"] = lines[5]["evaluation"], lines[1]["evaluation"]
    (copy.path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    said = " ".join(advice(RunFiles.open(copy.path)))
    assert "Seen clients had most in round 2, 16.7 points more than at the end" in said
    assert "still rises" not in said


def test_clients_with_few_samples_and_clients_far_from_all_are_told_what_to_try(run: RunFiles, tmp_path: Path) -> None:
    def worst(score: dict[str, Any]) -> None:
        score["zero_step"] = {"photo-0": 0.0, "sketch-0": 0.1}.get(score["client_id"], 0.9)

    copy = changed(run, tmp_path / "run", worst)
    listed = json.loads((copy.path / "clients.json").read_text())
    for card in listed["clients"]:
        if card["client_id"] == "photo-0":
            card["num_examples"] = 2
        if card["client_id"] == "sketch-0":
            card["signature"][:6] = [50.0] * 6  # feature means
    (copy.path / "clients.json").write_text(json.dumps(listed))
    said = " ".join(advice(RunFiles.open(copy.path)))
    assert "Few training samples: photo-0 (the median client has 10)" in said
    assert "Far from all other clients: sketch-0." in said
