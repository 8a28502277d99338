from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.controls import BOTH, OURS, OWN_HEAD, PRIOR, controls_table, scored_run
from benchmarks.forgetting import checkpoints, turns
from benchmarks.head_parts import WHOLE, head_parts_table, scores
from benchmarks.language import BASE, ROWS, Review, measured, write_federation
from benchmarks.language_model import Size, make_model
from benchmarks.remembering import AGAIN, AS_TOLD, NOTHING, remembered
from benchmarks.result import load_results
from benchmarks.suite import Job
from client_app.runtime import open_runtime
from hyperlora.config.schema import RunConfig
from hyperlora.data.tables import SEPARATOR
from hyperlora.reporting.run_files import RunFiles

REPOSITORY = Path(__file__).parents[2]


def benchmark(results: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "smoke", "--results", str(results), "--variant", "fedit"]
    options = ["--variant", "hyperlora", "--set", "federation.rounds=1"]
    return subprocess.run(
        [*command, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_suite_runs_prints_its_tables_and_is_not_run_again(tmp_path: Path) -> None:
    first = benchmark(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "| hyperlora |" in first.stdout
    (result,) = load_results(tmp_path, "smoke")["hyperlora"]
    assert len(result["rounds"]) == 1
    assert result["config"]["federation.rounds"] == 1
    again = benchmark(tmp_path)
    assert "2 of 2 runs are there, 0 to do" in again.stdout


def test_heads_made_again_are_those_of_the_run_and_differ_without_a_part(short_run: Path) -> None:
    run = RunFiles.open(short_run)
    told = scores(run)
    accuracy = {part: {one["client_id"]: one["zero_step"] for one in found} for part, found in told.items()}
    own = {one["client_id"]: one["zero_step"] for one in run.scores if one["track"] == "start"}
    assert accuracy[WHOLE] == pytest.approx(own, abs=1e-6)
    as_set = "share and scale by hand, a half each"
    assert accuracy[as_set] == accuracy[WHOLE]
    assert all(
        found != accuracy[WHOLE]
        for part, found in accuracy.items()
        if part not in (WHOLE, as_set, "the generated head alone")
    )
    table = head_parts_table([{"setting": "digits/plain", "seed": 0, "parts": told}])
    assert table.startswith("| in place of what it is | plain, seen | plain, unseen |")
    assert len(table.splitlines()) == 2 + len(told) - 1


def test_other_heads_are_scored_without_changing_the_run(short_run: Path) -> None:
    run = RunFiles.open(short_run)
    rows = scored_run(Job("smoke", OURS, run.config), OURS)
    anchor = f"{OURS}, anchor's head"
    for row, track in ((OURS, "start"), (anchor, "anchor")):
        known = {one["client_id"]: (one["zero_step"], one["k_step"]) for one in run.scores if one["track"] == track}
        assert {one["client_id"]: (one["zero_step"], one["k_step"]) for one in rows[row]} == known
    others = [
        rows[anchor],
        *(rows[f"{anchor}, {what}"] for what in (PRIOR, OWN_HEAD, BOTH)),
        rows[f"{OURS}, {OWN_HEAD}"],
    ]
    assert len({tuple(one["zero_step"] for one in found) for found in others}) == len(others)
    table = controls_table([{"setting": "smoke", "seed": 0, "entry": OURS, "rows": rows}])
    assert f"| {anchor}, {BOTH} |" in table


def test_what_clients_of_former_domains_tell_again_is_what_the_run_served(short_run: Path) -> None:
    run = RunFiles.open(short_run)
    (last,) = checkpoints(run)[-1:]
    found = remembered(run, [last] * 4, turns([last]))
    former = {one.client_id: one.zero_step for one in last.scores if one.domain != max(turns([last]))}
    assert found[AGAIN] == pytest.approx(former, abs=1e-6)
    assert found[AS_TOLD] == found[AGAIN]
    assert found[NOTHING] != found[AGAIN]


def test_clients_without_a_federation_have_the_loss_of_the_frozen_model(tmp_path: Path) -> None:
    reviews = [
        Review(domain, "train", f"{'very ' * (i % 7)}good {domain} number {i} that i like")
        for domain in ("apparel", "books")
        for i in range(66)
    ]
    texts = [one.text for one in reviews[:66]]
    size = Size(vocabulary=280, layers=2, width=16, heads=2, positions=32, length=8, batch=4, steps=20)
    make_model(tmp_path / "model", texts, texts[:9], size, lambda text: None)
    path = write_federation(reviews, tmp_path)
    given = {"data.path": str(path), "model.weights": str(tmp_path / "model"), "data.max-samples": 20}
    config = RunConfig.parse({**BASE, **ROWS["no federation"], **given, "federation.clients-per-round": 1})
    clients = measured(Job("language", "no federation", config), tmp_path)["clients"]
    assert [one["client_id"] for one in clients] == ["books-0", "books-1", "books-2"]
    assert all(one["k_step"] < one["zero_step"] for one in clients)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    losses = []
    for text in open_runtime(config).client("books-2").test.inputs:
        prompt, response = (tokenizer(part)["input_ids"] for part in text.split(SEPARATOR))
        ids = torch.tensor([*prompt, *response, tokenizer.eos_token_id])[: config.model.max_length]
        with torch.no_grad():
            found = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        losses.append(found[len(prompt) - 1 :])
    assert clients[2]["zero_step"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)
