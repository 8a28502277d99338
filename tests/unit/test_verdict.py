"""What a report says in words: the validation share chooses a start, losers are named, small samples are unsure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperlora.reporting.verdict import chosen_starts, gain_interval, interval, losers, verdict
from server_app.console import RunConsole
from server_app.progress import Pace
from strategies.engine.records import ClientScore, RoundRecord


def score(name: str, track: str, accuracy: float, loss: float, *, seen: bool = True) -> dict[str, Any]:
    columns = {"zero_step": accuracy, "k_step": accuracy, "zero_step_validation_loss": loss, "num_test": 13}
    return {"client_id": name, "track": track, "seen": seen, "domain": "d", **columns}


SCORES = [
    score("a", "start", 0.9, loss=0.3),
    score("a", "anchor", 0.7, loss=0.8),
    score("b", "start", 0.5, loss=1.4),
    score("b", "anchor", 0.75, loss=0.6),
    score("c", "start", 0.4, loss=0.9, seen=False),
    score("c", "anchor", 0.6, loss=1.0, seen=False),
]


def test_the_validation_loss_chooses_between_the_own_adapter_and_the_anchor() -> None:
    choices = chosen_starts(SCORES)
    assert {name: choice.anchor for name, choice in choices.items()} == {"a": False, "b": True, "c": False}
    assert {name: choice.accuracy for name, choice in choices.items()} == {"a": 0.9, "b": 0.75, "c": 0.4}
    assert choices["b"].gain == pytest.approx(-0.25)


def test_without_a_validation_loss_the_own_adapter_stays() -> None:
    bare = [{key: value for key, value in one.items() if "loss" not in key} for one in SCORES]
    assert not any(choice.anchor for choice in chosen_starts(bare).values())


def test_the_verdict_says_both_groups_and_what_the_choice_gives() -> None:
    said = verdict(SCORES)
    assert "2 clients that train have 70.0 % (-2.5 points over the anchor, better for 1 of 2)" in said
    assert "1 newcomers, which never train, have 40.0 % (-20.0 points over the anchor, better for 0 of 1)" in said
    assert "would choose the anchor for 1 of 3 clients: as chosen they would have 68.3 %" in said
    assert verdict([]) == ""


def test_the_run_itself_says_what_the_validation_shares_choose(tmp_path: Path) -> None:
    rest = {"chosen": 0.5, "zero_step_loss": 1.0, "k_step_validation_loss": 1.0, "by_steps": {}}
    console = RunConsole(tmp_path / "console.log", pace=Pace(2, 1, 1.0), echo=False)
    console.closing(RoundRecord(2), [ClientScore(**{**one, **rest}) for one in SCORES], tmp_path)
    assert "The validation share would choose the anchor for 1 of 3 clients" in (tmp_path / "console.log").read_text()


def test_clients_that_lose_much_are_named_with_what_the_choice_saves() -> None:
    assert "b (-25 points), c (-20 points). The validation share chooses the anchor for 1 of these 2" in losers(SCORES)
    assert losers(SCORES[:2]) == ""


def test_the_interval_of_a_mean_gain_is_drawn_over_clients() -> None:
    low, high = gain_interval([0.0, 0.1] * 50)
    assert 0.03 < low < 0.045
    assert 0.055 < high < 0.07
    assert gain_interval([0.02]) == (0.02, 0.02)


def test_an_interval_is_wilsons() -> None:
    low, high = interval(11 / 13, 13)
    assert (low, high) == pytest.approx((0.5777, 0.9567), abs=1e-3)
    assert interval(1.0, 40)[1] == 1.0
    assert interval(0.5, 0) == (0.0, 1.0)
