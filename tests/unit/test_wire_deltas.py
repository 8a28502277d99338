"""What travels in the study of narrow numbers and changes of low rank, on made-up adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.wire_deltas import CODINGS, REFERENCE, ROWS, Coding, Line, relative_error, wire_deltas_table
from models.adapters.adapter import combine, subtract
from models.lowrank.factors import norm
from tests.builders import make_adapter

FRESH, START, END = make_adapter(5), make_adapter(0), make_adapter(1)


def line_of(coding: Coding) -> Line:
    return Line(coding, FRESH)


def change(line: Line) -> Any:
    return line.change(START, END, torch.Generator().manual_seed(0))


def test_whole_numbers_bring_the_change_exactly() -> None:
    line = line_of(CODINGS[REFERENCE])
    assert line.start("a", START).tensors().keys() == START.tensors().keys()
    assert relative_error([change(line)], [subtract(END, START)], [1.0]) < 1e-10


@pytest.mark.parametrize(("wider", "narrower"), [("float32", "int8"), ("int8", "int4")])
def test_fewer_bits_are_smaller_and_further_off(wider: str, narrower: str) -> None:
    found = {}
    for wire in (wider, narrower):
        line = line_of(Coding(wire))
        error = relative_error([change(line)], [subtract(END, START)], [1.0])
        found[wire] = (line.moved["up"][0], error)
    assert found[narrower][0] < 0.8 * found[wider][0]
    assert found[narrower][1] > found[wider][1]


def test_a_change_of_low_rank_is_the_best_of_that_rank() -> None:
    got = change(line_of(Coding(reply_rank=1)))
    exact = subtract(END, START)
    best = exact.truncated(1)
    for kind, factors in best.low_rank.items():
        error = norm(subtract(got, best).low_rank[kind])
        assert float(error.max()) < 1e-4 * float(norm(factors).max())
    assert relative_error([got], [exact], [1.0]) == pytest.approx(relative_error([best], [exact], [1.0]), rel=1e-3)


def test_a_start_by_changes_begins_at_the_fresh_adapter_and_comes_closer_every_time() -> None:
    line = line_of(Coding(start_rank=1))
    errors = [relative_error([line.start("a", START)], [START], [1.0]) for _ in range(4)]
    assert errors[-1] < errors[0]
    assert relative_error([line.start("b", START)], [START], [1.0]) == pytest.approx(errors[0])


def test_the_mean_of_several_is_compared_with_the_true_mean() -> None:
    ends, weights = [make_adapter(seed) for seed in (1, 2)], [0.25, 0.75]
    assert relative_error(ends, ends, weights) == pytest.approx(0.0, abs=1e-10)
    assert relative_error([combine([one], [2.0]) for one in ends], ends, weights) == pytest.approx(1.0, rel=1e-5)


def test_the_table_has_differences_on_the_seeds_that_both_have() -> None:
    row = {"a": 0.8, "b": 0.6, "new": 0.5}
    worse = {name: one - 0.01 for name, one in row.items()}
    made = {"commit": "c0ffee", "seen": ["a", "b"], "kib": {"down": 10.0, "up": 5.0}, "error": 0.25}
    runs = [{**made, "coding": REFERENCE, "seed": seed, "rows": dict.fromkeys(ROWS, row)} for seed in (0, 1)]
    runs.append({**made, "coding": "int4", "seed": 1, "rows": dict.fromkeys(ROWS, worse)})
    (line,) = (line for line in wire_deltas_table(runs).splitlines() if line.startswith("| int4"))
    cells = [one.strip() for one in line.split("|")[2:-1]]
    assert cells[:3] == ["10.0", "5.0", "25 %"]
    assert cells[3:5] == ["69.0 (-1.0 [-1.0, -1.0])", "49.0 (-1.0 [-1.0, -1.0])"]
