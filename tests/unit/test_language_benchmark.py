"""The benchmark of language models: its halves of the domains, its tables from made-up runs, and its small model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.bootstrap import paired_difference
from benchmarks.language import BASE, RATES, ROWS, Review, halves, jobs, losses, reviewed_model, write_federation
from benchmarks.language_model import KNOWN, Size, in_blocks, learn_tokenizer, make_model, rate_at, unigram_loss
from benchmarks.language_table import ORDER, RESULT, chosen_rate, language_table
from hyperlora.config.schema import RunConfig
from hyperlora.data.listing import Origin
from hyperlora.data.opening import list_samples

MODEL = {
    "layers": 2, "width": 8, "weights": 1_250_000, "steps": 30, "batch": 4, "length": 6, "seconds": 90.0,
    "loss": 4.25, "perplexity": 70.1, "unigram_loss": 6.5, "unigram_perplexity": 665.1,
}  # fmt: skip
TINY = Size(vocabulary=300, layers=2, width=16, heads=2, positions=32, length=12, batch=4, steps=60, learning_rate=0.01)


def made_run(row: str = "fedit", seed: int = 0, rate: float = 0.003, loss: float = 4.0) -> dict[str, Any]:
    clients = [
        {
            "client_id": f"{domain}-{place}",
            "domain": domain,
            "seen": place < 2,
            "track": "start",
            "zero_step": loss + 0.5 * place,
            "k_step": loss - 0.25,
            "zero_step_validation": loss + (0.25 if place < 2 else 9.0),
            "k_step_validation": loss + (0.0 if place < 2 else 9.0),
        }
        for domain in ("books", "music")
        for place in range(3)
    ]
    return {"row": row, "seed": seed, "rate": rate, "commit": "c0ffee", "seconds": 180.0, "clients": clients,
            "model": MODEL}  # fmt: skip


def cells(text: str) -> dict[str, list[str]]:
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def test_no_domain_is_on_both_sides_and_every_one_is_on_one() -> None:
    model, federation = halves(["video", "MR", "baby", "MR", "apparel", "books"])
    assert (model, federation) == (["MR", "baby", "video"], ["apparel", "books"])


def test_the_federations_file_has_its_own_domains_as_the_product_reads_them(tmp_path: Path) -> None:
    texts = {
        "apparel": ["these socks are thick and warm"],
        "books": ["a book that i liked a lot", "not for me either", "it was far too long"],
        "music": ["one that the model learns from"],
    }
    reviews = [Review(domain, "train", text) for domain, own in texts.items() for text in own]
    path = write_federation(reviews, tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["domain"] for row in rows} == {"books"}
    assert rows[0] == {"prompt": "a book that i", "response": "liked a lot", "domain": "books"}
    assert [row["response"] for row in rows[1:]] == ["long"]  # one of four words leaves no response
    assert len(list_samples("instructions", Origin(str(path))).labels) == 2


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_configuration_and_stands_in_the_tables(row: str) -> None:
    assert row in ORDER
    config = RunConfig.parse({**BASE, **ROWS[row]})
    assert config.data.name == "instructions"
    assert config.train.steps_of_use == 10


def test_rates_are_tried_first_and_the_best_by_validation_is_everybodys() -> None:
    runs: list[dict[str, Any]] = []
    made = []
    for job in jobs(runs, ["fedit", "local"], [0, 1], {"federation.rounds": 2}):
        rate = job.config.train.learning_rate
        made.append((job.variant, job.config.seed, rate))
        runs.append(made_run(job.variant, job.config.seed, rate, loss=4.0 + abs(math.log10(rate / 0.002))))
    tried = [("fedit", 0, rate) for rate in RATES]
    assert made == [*tried, ("local", 0, 0.003), ("fedit", 1, 0.003), ("local", 1, 0.003)]
    assert list(jobs(runs, ["fedit", "local"], [0, 1], {})) == []


def test_the_tables_have_losses_and_what_a_row_has_less_than_the_reference() -> None:
    runs = [made_run(rate=0.01, loss=5.0), made_run(), made_run("hyperlora", loss=3.9)]
    assert chosen_rate(runs) == 0.003
    text = language_table(runs)
    found = cells(text)
    assert found["fedit (1 seed(s))"] == ["4.250", "3.750", "5.000", "3.750"]
    assert found["hyperlora (1 seed(s))"] == ["4.150", "3.650", "4.900", "3.650"]
    received, against_steps = ["-10.0 [-10.0, -10.0]"] * 2, ["+40.0 [+15.0, +65.0]", "+115.0 [+115.0, +115.0]"]
    changes = [*received, against_steps[0], *received, against_steps[1]]
    assert f"| hyperlora | {' | '.join(changes)} |" in text
    assert found["hyperlora"] == ["4.400", "4.400"]  # the last table, by domain
    assert "4.125 at 0.003, 5.125 at 0.01" in text
    assert "1.2 M weights" in text
    assert "perplexity 70, against 6.50 and 665 of a unigram model" in text


def test_a_clients_losses_are_those_of_no_and_of_all_steps() -> None:
    score = {"client_id": "a-0", "domain": "a", "seen": True, "track": "start", "by_steps": {}}
    validation = {"zero_step_validation_loss": 4.5, "k_step_validation_loss": 4.25}
    told = losses({**score, **validation, "loss_by_steps": {"0": 4.0, "5": 3.5, "10": 3.0}})
    assert (told["zero_step"], told["k_step"]) == (4.0, 3.0)
    assert (told["zero_step_validation"], told["k_step_validation"]) == (4.5, 4.25)


def test_training_lowers_the_loss_below_a_unigram_models_and_what_is_saved_is_that_model(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat and the dog ran to the door"] * 40
    said: list[str] = []
    before = torch.random.get_rng_state()
    told = make_model(tmp_path, texts, texts[:4], TINY, said.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert told["loss"] < 0.5 * told["unigram_loss"]
    assert told["perplexity"] == pytest.approx(math.exp(told["loss"]))
    assert json.loads((tmp_path / KNOWN).read_text()) == told
    assert said[-1].startswith("step 60 of 60, loss ")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the cat sat on the", return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " mat"


def test_a_model_from_elsewhere_is_neither_used_nor_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(typer.BadParameter, match=r"has a model without training\.json"):
        reviewed_model(tmp_path, [Review("a", "train", "text")])


def test_the_tokenizer_begins_every_text_with_a_space_and_texts_end_in_blocks() -> None:
    tokenizer = learn_tokenizer(["good film"] * 5, 270)
    assert tokenizer.decode(tokenizer("good film")["input_ids"]) == " good film"
    blocks = in_blocks(tokenizer, ["good", "film", "good"], 2)
    assert int((blocks == tokenizer.eos_token_id).sum()) >= 2


def test_a_unigram_model_of_even_counts_knows_nothing_but_how_many_tokens_there_are() -> None:
    assert unigram_loss(torch.arange(8)[None], torch.arange(6).view(2, 3), 8) == pytest.approx(math.log(8))


def test_the_rate_rises_and_then_falls_to_a_tenth() -> None:
    rates = [rate_at(step, 100) for step in range(101)]
    assert rates[4] == 1.0
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[100] == pytest.approx(0.1)


STARTS, ALIKE, FROZEN = "hyperlora, deviations in rounds", "hyperlora, deviations alike for all", "no federation"
STATED = [
    (STARTS, "fedit", "seen", ("zero_step", "zero_step"), "2.7 hundredths", "2.2 to 3.1"),
    (STARTS, "fedit", "unseen", ("zero_step", "zero_step"), "2.2 for unseen", "1.7 to 2.9"),
    (STARTS, "fedit", "seen", ("zero_step", "k_step"), "0.8", "0.6 to 1.1"),
    (STARTS, "fedit", "unseen", ("zero_step", "k_step"), "0.5", "0.2 to 0.8"),
    (FROZEN, "fedit", "seen", ("zero_step", "zero_step"), "4.8 hundredths above", "4.0 to 5.5"),
    (FROZEN, "fedit", "unseen", ("zero_step", "zero_step"), "4.4 for unseen", "3.1 to 5.8"),
    (STARTS, STARTS, "seen", ("k_step", "zero_step"), "1.4 hundredths", "1.1 to 1.8"),
    (STARTS, "fedit", "seen", ("k_step", "k_step"), "0.7 above", "0.4 to 1.0"),
    (STARTS, "fedit", "unseen", ("k_step", "k_step"), "0.6 below", "0.3 to 1.0"),
    (ALIKE, "fedit", "seen", ("zero_step", "zero_step"), "level", ""),
    (ALIKE, "fedit", "unseen", ("zero_step", "zero_step"), "level", ""),
    ("hyperlora", "fedit", "seen", ("zero_step", "zero_step"), "level", ""),
    ("hyperlora", "fedit", "unseen", ("zero_step", "zero_step"), "level", ""),
]


@pytest.mark.parametrize(("row", "rival", "group", "columns", "points", "interval"), STATED)
def test_the_page_says_what_the_results_say(
    row: str, rival: str, group: str, columns: tuple[str, str], points: str, interval: str
) -> None:
    runs = json.loads(RESULT.read_text())["runs"]
    left, right = ([run for run in runs if (run["row"], run["rate"]) == (name, 0.003)] for name in (row, rival))
    found = paired_difference(left, right, group, columns)
    page = " ".join((RESULT.parents[2] / "docs" / "adapters.md").read_text().split())
    assert points in page
    if interval:
        low, high = sorted((abs(found.low), abs(found.high)))
        assert f"({interval})" in page or f"interval {interval})" in page
        assert (f"{low:.1f} to {high:.1f}", f"{abs(found.mean):.1f}") == (interval, points.split()[0])
    else:
        assert found.verdict == "level"
