"""The tables of what it costs if the server is told nothing but sums, on made-up runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.central_privacy import central_privacy_table
from benchmarks.product_average import from_two_passes, orthonormal, right_basis, times_left, times_right
from benchmarks.sum_movements import WAYS, sum_movements_table
from benchmarks.sums import ANCHOR, OPEN, RESULT, SETTINGS, SUMS, configured, sums_table
from models.adapters.adapter import Adapter, combine
from models.lowrank.factors import Factors, norm
from models.lowrank.truncation import best_rank
from models.sums.shared_factor import framed


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


def test_settings_stand_side_by_side() -> None:
    assert "120 clients, seen" in sums_table([made_run("120 clients", 0, lost=0.0)])


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_every_setting_is_a_run_of_hyperlora(setting: str) -> None:
    config = configured(setting, 2, {"federation.rounds": 3})
    assert (config.method, config.seed, config.federation.rounds) == ("hyperlora", 2, 3)


def adapter(seed: int, rank: int = 2) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    B, A = torch.randn(2, 9, rank, generator=draw), torch.randn(2, rank, 8, generator=draw)
    return Adapter({"qkv": Factors(B=B, A=A)}, torch.randn(3, 5, generator=draw))


@dataclass(frozen=True)
class TwoClients:
    """Two clients that make something else of every start, of its shape."""

    seed: int = 0

    @property
    def config(self) -> TwoClients:
        return self

    def trained(self, start: Adapter, server_round: int, trains: str = "all") -> list[tuple[float, Adapter]]:
        made = [adapter(server_round + one) for one in (0, 1)]
        if trains != "all":
            made = [one_factor_of(start, one, trains) for one in made]
        return list(zip((1.0, 3.0), made, strict=True))


def one_factor_of(start: Adapter, end: Adapter, trains: str) -> Adapter:
    old, new = start.low_rank["qkv"], end.low_rank["qkv"]
    return Adapter({"qkv": Factors(B=new.B, A=old.A) if trains == "B" else Factors(B=old.B, A=new.A)}, end.head)


@pytest.mark.parametrize("way", ["two sums of products", "one sum of products"])
def test_sums_of_products_are_exact_where_the_columns_suffice(way: str) -> None:
    clients: Any = TwoClients()
    got = WAYS[way](clients, adapter(9), adapter(9), 1)
    exact = combine([end for _, end in clients.trained(got, 1)], [0.25, 0.75])
    expected = best_rank(exact.low_rank["qkv"], 2).product()
    torch.testing.assert_close(got.low_rank["qkv"].product(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.head, exact.head)


@pytest.mark.parametrize("server_round", [1, 2])
def test_one_factor_in_turn_is_the_average_of_the_products(server_round: int) -> None:
    clients: Any = TwoClients()
    anchor, side = adapter(9), "B" if server_round % 2 else "A"
    got = WAYS["one factor in turn"](clients, adapter(8), anchor, server_round)
    ends = [end for _, end in clients.trained(framed(anchor, adapter(8), side), server_round, side)]
    expected = combine(ends, [0.25, 0.75])
    torch.testing.assert_close(got.low_rank["qkv"].product(), expected.low_rank["qkv"].product(), rtol=1e-4, atol=1e-4)


def test_the_table_of_movements_has_differences_to_two_sums_on_the_seeds_that_both_have() -> None:
    row = {"a": 0.8, "b": 0.6, "new": 0.5}
    made = {"setting": "Dirichlet 0.5", "commit": "c0ffee", "seen": ["a", "b"]}
    runs = [{**made, "way": "two sums of products", "seed": seed, "row": row} for seed in (0, 1)]
    worse = {name: one - 0.01 for name, one in row.items()}
    runs += [{**made, "way": "one factor in turn", "seed": seed, "row": worse} for seed in (1, 2)]
    (line,) = (line for line in sum_movements_table(runs).splitlines() if line.startswith("| one factor"))
    assert [one.strip() for one in line.split("|")[2:-1]] == ["1", "69.0", "49.0", *2 * ["-1.0 [-1.0, -1.0]"]]


def recorded() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    return made


def test_two_sums_with_fewer_columns_lose_more_than_eckart_young_and_less_than_everything() -> None:
    ends = [adapter(seed) for seed in range(3)]
    exact = combine(ends, [0.2, 0.5, 0.3])
    right = right_basis(ends[0], 3, 0)
    left = orthonormal(combined([times_right(one, right) for one in ends]))
    got = from_two_passes(left, combined([times_left(one, left) for one in ends]), exact.head, 2)
    best, some = lost(exact.truncated(2), exact), lost(got, exact)
    assert bool((best <= some + 1e-6).all())
    assert bool((some < 1.0).all())


def combined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {"qkv": sum((w * one["qkv"] for w, one in zip([0.2, 0.5, 0.3], parts, strict=True)), torch.zeros(()))}


def lost(got: Adapter, exact: Adapter) -> Tensor:
    apart = combine([got, exact], [1.0, -1.0])
    return norm(apart.low_rank["qkv"]) / norm(exact.low_rank["qkv"])


def test_a_basis_is_orthonormal_has_the_rows_of_the_anchor_and_follows_from_the_seed() -> None:
    anchor = adapter(0)
    one, same, other = (right_basis(anchor, 5, seed)["qkv"] for seed in (1, 1, 2))
    torch.testing.assert_close(one.mT @ one, torch.eye(5, dtype=torch.float64).expand(2, 5, 5))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    rows = anchor.low_rank["qkv"].A.double().mT
    torch.testing.assert_close(one @ (one.mT @ rows), rows)


def test_a_row_of_fewer_seeds_than_the_others_says_so() -> None:
    opened = next(run for run in recorded() if (run["setting"], run["seed"]) == ("120 clients", 0))
    made = {"clients": 1000, "commit": "c0ffee", "row": opened["rows"][OPEN], "seen": opened["seen"]}
    runs = [{**made, "epsilon": 8.0, "seed": seed} for seed in (0, 7)] + [{**made, "epsilon": 2.0, "seed": 0}]
    rows = [line.split("|")[1].strip() for line in central_privacy_table(runs).splitlines() if "|" in line]
    assert "epsilon 8, 1,000 clients" in rows
    assert "epsilon 2, 1,000 clients (seed 0)" in rows
