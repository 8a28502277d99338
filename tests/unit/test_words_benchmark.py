from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks.words import HERE, NOTHING, PAIRS, SETTINGS, difference_of, without_domains, words_table
from hyperlora.seeds import derive_seed


def run(setting: str, seed: int, sentence: float) -> dict[str, Any]:
    def clients(share: float) -> list[dict[str, Any]]:
        return [{"client_id": name, "seen": False, "track": "start", "zero_step": share} for name in "ab"]

    return {"setting": setting, "seed": seed, "parts": {"sentence": clients(sentence), NOTHING: clients(0.5)}}


def test_the_table_has_means_and_paired_differences_of_every_setting() -> None:
    runs = [run("x", 0, 0.7), run("x", 1, 0.7), run("y", 0, 0.4)]
    header, _, sentence, nothing = words_table(runs).splitlines()
    assert header == "| what a newcomer says | x (%) | minus nothing | y (%) | minus nothing |"
    assert sentence == "| sentence | 70.0 | +20.0 [+20.0, +20.0] | 40.0 | -10.0 [-10.0, -10.0] |"
    assert nothing == f"| {NOTHING} | 50.0 |  | 50.0 |  |"
    assert difference_of(runs[:2], "sentence", NOTHING).seeds == 2


def test_what_is_worth_what_stands_in_a_second_table() -> None:
    left, right = PAIRS[0]
    pair = {left: run("x", 0, 0.8)["parts"]["sentence"], right: run("x", 0, 0.6)["parts"]["sentence"]}
    text = words_table([{"setting": "x", "seed": 0, "parts": {**pair, NOTHING: pair[right]}}])
    assert text.splitlines()[-1] == f"| {left} minus {right} | +20.0 [+20.0, +20.0] |"


def test_the_domains_left_out_are_drawn_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = {"text": list("abcdefgh"), "domain": list("uuvvwwxx")}
    Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "all.parquet")
    kept = Dataset.from_parquet(str(without_domains(tmp_path / "data", 2, 7, tmp_path)), cache_dir=str(tmp_path))
    gone = random.Random(derive_seed("left out", 7)).sample(list("uvwx"), 2)
    assert set(kept["domain"]) == set("uvwx") - set(gone)
    assert len(kept) == 4


def test_every_domain_has_a_sentence_that_does_not_name_it() -> None:
    told = tomllib.loads((HERE / "descriptions.toml").read_text(encoding="utf-8"))
    assert set(told) == {one.data for one in SETTINGS}
    assert [len(sentences) for sentences in told.values()] == [16, 10]
    for sentences in told.values():
        assert all(domain.replace("_", " ") not in sentence for domain, sentence in sentences.items())
