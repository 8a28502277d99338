"""The table and the figure of accuracy over bytes, on made-up runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.wire_table import bytes_table, draw_bytes, kib_of


def made_run(seed: int, kib: float, accuracy: float) -> dict[str, Any]:
    group = {"zero_step": {"mean": accuracy}}
    rounds = [
        {"cohort": ["a", "b"], "bytes": {"train_down": 2048 * kib, "train_up": 1024 * kib}, "evaluation": {}},
        {"cohort": [], "bytes": {"train_down": 0, "train_up": 0}, "evaluation": {"seen": group, "unseen": group}},
    ]
    clients = [
        {"client_id": name, "track": "start", "seen": seen, "zero_step": accuracy}
        for name, seen in (("a", True), ("b", True), ("new", False))
    ]
    return {"seed": seed, "rounds": rounds, "clients": clients}


FOUND = {
    "fedit, float32": [made_run(seed, 8.0, 0.8) for seed in (0, 1)],
    "fedit, int4": [made_run(seed, 1.0, 0.79) for seed in (0, 1)],
}


def test_rounds_in_which_nobody_trained_count_nothing() -> None:
    assert kib_of(FOUND["fedit, float32"]) == (8.0, 4.0)


def test_the_table_has_kib_both_ways_and_differences_to_the_reference() -> None:
    whole, narrow = bytes_table(FOUND, list(FOUND), "fedit, float32").splitlines()[2:4]
    assert whole == "| fedit, float32 | 8.0 | 4.0 | 80.0 ± 0.0 |  | 80.0 ± 0.0 |  |"
    assert narrow == "| fedit, int4 | 1.0 | 0.5 | 79.0 ± 0.0 | -1.0 [-1.0, -1.0] | 79.0 ± 0.0 | -1.0 [-1.0, -1.0] |"


def test_a_model_trained_in_one_place_has_no_messages_and_no_row() -> None:
    alone = made_run(0, 1.0, 0.9)
    alone["rounds"] = [{**one, "cohort": [], "bytes": {}} for one in alone["rounds"]]
    table = bytes_table({**FOUND, "centralised": [alone]}, [*FOUND, "centralised"], "fedit, float32")
    assert "| fedit, int4 |" in table
    assert "| centralised |" not in table
    assert bytes_table({"centralised": [alone]}, ["centralised"], "centralised") == ""


def test_the_figure_names_every_row_and_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        draw_bytes(FOUND, list(FOUND), path)
    text = paths[0].read_text(encoding="utf-8")
    assert "int4" in text
    assert "float32" in text
    assert text == paths[1].read_text(encoding="utf-8")
    draw_bytes({}, [], tmp_path / "none.svg")
    assert "not measured yet" in (tmp_path / "none.svg").read_text(encoding="utf-8")
