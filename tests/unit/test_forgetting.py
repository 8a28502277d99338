"""Forgetting on a made-up history, and what a server makes of class statistics that it was told before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.forgetting import ROWS, at_the_end, forgetting_table, jobs, of_former, with_forgetting
from benchmarks.remembering import AGAIN, ANCHOR, AS_TOLD, MOVED, NOTHING, drift, ways
from models.personalization.class_statistics import ClassStatistics, compute_class_statistics
from tests.builders import make_statistics

CLIENTS = {"a": [0.9, 0.5, 0.6], "b": [0.3, 0.8, 0.7], "c": [0.2, 0.1, 0.4]}


def made_run(row: str = "fedit", better: float = 0.0, seed: int = 0) -> dict[str, Any]:
    clients = [
        {"client_id": f"{domain}-{place}", "domain": domain, "seen": place == 0, "accuracy": accuracy}
        for domain, told in CLIENTS.items()
        for place, accuracy in enumerate([[*told[:-1], told[-1] + better], [0.5 * one for one in told]])
    ]
    return {"row": row, "seed": seed, "commit": "c0ffee", "clients": clients, "remembered": {}}


def test_a_client_forgets_what_it_has_less_at_the_end_than_after_the_turn_of_its_domain() -> None:
    run = with_forgetting(made_run())
    forgotten = {one["client_id"]: one["forgotten"] for one in run["clients"]}
    assert forgotten == pytest.approx({"a-0": 0.3, "a-1": 0.15, "b-0": 0.1, "b-1": 0.05})
    assert [one["after its turn"] for one in of_former(made_run())["clients"]] == [0.9, 0.45, 0.8, 0.4]
    assert len(at_the_end(made_run())["clients"]) == 6


def test_the_tables_have_what_was_forgotten_and_what_a_row_forgot_less_than_the_reference() -> None:
    lines = forgetting_table([made_run(), made_run("hyperlora", better=0.04), made_run("fedit, no turns")]).splitlines()
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    absolute = {row[0]: row[1:] for row in rows[2:5]}
    assert absolute["fedit (1 seed(s))"][:4] == ["85.0", "65.0", "+20.0 [+10.0, +30.0]", "56.7"]
    assert absolute["hyperlora (1 seed(s))"][:4] == ["85.0", "69.0", "+16.0 [+6.0, +26.0]", "60.7"]
    assert absolute["fedit, no turns (1 seed(s))"] == ["", "", "", "56.7", "", "", "", "28.3"]
    against = {row[0]: row[1:] for row in rows[7:]}
    assert against["hyperlora"][:2] == ["-4.0 [-4.0, -4.0]", "+4.0 [+4.0, +4.0]"]
    assert against["fedit, no turns"][0] == ""


def test_every_row_is_a_run_and_those_of_one_seed_stand_together() -> None:
    made = list(jobs(list(ROWS), [0, 1], {"federation.rounds": 7}))
    assert [(job.config.seed, job.variant) for job in made] == [(seed, row) for seed in (0, 1) for row in ROWS]
    assert {job.config.federation.domain_rounds for job in made} == {0, 5}
    assert all(job.config.federation.rounds == 7 and job.config.lora.scaling == 2.0 for job in made)


def displaced(one: ClassStatistics, by: torch.Tensor) -> ClassStatistics:
    return replace(one, sums=one.sums + one.counts[:, None] * by)


def test_class_means_of_clients_that_are_gone_move_with_those_of_clients_that_are_not() -> None:
    names = ("gone-0", "gone-1", "here-0", "here-1")
    before = {name: make_statistics(name, counts=(5, 3, 2)) for name in names}
    by = torch.randn(3, before["gone-0"].sums.shape[1], generator=torch.Generator().manual_seed(7))
    now = {name: displaced(one, by) for name, one in before.items()}
    found = ways(now, dict.fromkeys(("gone-0", "gone-1"), before))
    for name in ("gone-0", "gone-1"):
        torch.testing.assert_close(found[MOVED][name].sums, now[name].sums, rtol=1e-5, atol=1e-4)
        assert torch.equal(found[AS_TOLD][name].sums, before[name].sums)
        assert not torch.allclose(before[name].sums, now[name].sums)
    assert all(torch.equal(found[way]["here-0"].sums, now["here-0"].sums) for way in found)
    assert set(found[NOTHING]) == set(found[ANCHOR]) == {"here-0", "here-1"}
    assert found[AGAIN] == now


def test_a_class_that_nobody_there_has_moves_as_all_samples_do() -> None:
    features, labels = torch.zeros(4, 6), torch.tensor([0, 0, 0, 1])
    before = {"here": compute_class_statistics(features, labels, num_classes=3, rank=2)}
    now = {"here": displaced(before["here"], torch.tensor([[4.0], [8.0], [0.0]]).expand(3, 6))}
    assert drift(before, now)[:, 0].tolist() == [4.0, 8.0, 5.0]
