"""The tables of what it costs if the server is told nothing but sums, on made-up runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.sums import ANCHOR, OPEN, SETTINGS, SUMS, configured, missing, sums_table
from benchmarks.sums_only import averaged, next_anchor
from models.adapters.adapter import Adapter, combine
from models.lowrank.factors import Factors, norm


def made_run(setting: str, seed: int, *, lost: float) -> dict[str, Any]:
    opened = {"a": 0.8, "b": 0.6, "new": 0.5}
    rows = {OPEN: opened, ANCHOR: dict.fromkeys(opened, 0.4), SUMS: {name: one - lost for name, one in opened.items()}}
    return {"setting": setting, "seed": seed, "commit": "c0ffee", "config": {}, "rows": rows, "seen": ["a", "b"]}


def test_the_tables_have_means_and_differences_of_both_groups() -> None:
    text = sums_table([made_run("Dirichlet 0.5", seed, lost=0.02) for seed in (0, 1)])
    rows = {
        line.split("|")[1].strip(): [one.strip() for one in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    assert rows["open"] == ["70.0 ± 0.0", "50.0 ± 0.0"]
    assert rows["sums"] == ["-2.0 [-2.0, -2.0]", "-2.0 [-2.0, -2.0]"]
    assert "seeds Dirichlet 0.5: 0, 1" in text


def test_settings_stand_side_by_side_and_what_is_missing_is_run() -> None:
    assert "120 clients, seen" in sums_table([made_run("120 clients", 0, lost=0.0)])
    assert list(missing(["120 clients"], [0, 1], {("120 clients", 0)})) == [("120 clients", 1)]


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_every_setting_is_a_run_of_hyperlora(setting: str) -> None:
    config = configured(setting, 2, {"federation.rounds": 3})
    assert (config.method, config.seed, config.federation.rounds) == ("hyperlora", 2, 3)


def test_the_next_anchor_is_the_truncated_average_by_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    ends = [
        Adapter(
            {"qkv": Factors(torch.randn(1, 9, 1, generator=generator), torch.randn(1, 1, 8, generator=generator))},
            torch.full((2, 3), float(one)),
        )
        for one in range(2)
    ]
    trained = list(zip([10.0, 30.0], ends, strict=True))
    found = next_anchor(ends[0], trained, 2, 0)
    exact = combine(ends, [0.25, 0.75]).truncated(1)
    assert norm(combine([found, exact], [1.0, -1.0]).low_rank["qkv"]).max() < 1e-4
    torch.testing.assert_close(found.head, torch.full((2, 3), 0.75))
    assert averaged(trained, lambda end: {"head": end.head})["head"][0, 0] == pytest.approx(0.75)
