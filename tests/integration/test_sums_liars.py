"""Clients of a run of sums that lie: their part of a sum is wrong, the run goes on and ends as any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperlora.messages.questions import Question
from hyperlora.secure_sum.collector import UnmaskableError
from hyperlora.secure_sum.fixed_point import LARGEST, Vector
from hyperlora.secure_sum.participant import Participant
from strategies.engine.records import RoundRecord
from strategies.sums.channel import MOST_TRIES, SumChannel
from tests.sums_runs import CLIENTS, made, records

ASKED = CLIENTS
"""Clients that train in the short run, all of which an evaluation asks."""


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Have one client change one number of what it tells before it masks it, in sums of one length."""

    def lie(length: int, clients: float) -> None:
        honest = Participant.masked

        def masked(self: Participant, sealed: Any, vector: Vector, asked: bytes = b"") -> Vector:
            if len(vector) == length and self.name == min(self.public):
                vector = vector.copy()
                vector[0] += np.uint32(int(clients * (LARGEST // ASKED)) % 2**32)
            return honest(self, sealed, vector, asked)

        monkeypatch.setattr(Participant, "masked", masked)

    return lie


@pytest.mark.parametrize("clients", [-float(ASKED), 0.9 * ASKED])
@pytest.mark.usefixtures("metrics_alone")
def test_one_that_counts_as_many_or_less_than_none_costs_the_evaluation_and_not_the_run(
    clients: float, lying: Callable[[int, float], None], tmp_path: Path
) -> None:
    width = 64
    lying(1 + 2 * width, clients)  # the moments of features: a count, sums and squares
    directory, _ = made(tmp_path / "run", **{"federation.rounds": 1})
    record = records(directory)[0]
    assert record["training"]["clients"] == 5
    assert "counts clients that are not in it" in record["missing_sums"]["moments"]
    assert json.loads((directory / "evaluation.json").read_text()) == []


@pytest.mark.parametrize(("noise", "times"), [(0.0, MOST_TRIES), (2.0, 1)])
def test_a_question_with_noise_is_asked_once_since_its_answers_are_counted(
    noise: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(self: SumChannel, grid: Any, names: list[str], question: Question, record: RoundRecord) -> None:
        tried.append(names)
        raise UnmaskableError(names[0], "its shares do not fit", at_fault=True)

    monkeypatch.setattr(SumChannel, "_tried", fails)
    registrar: Any = type("Registrar", (), {"roster": type("Roster", (), {"reachable": lambda self: "abcdef"})()})()
    channel, record = SumChannel(registrar, None, 1.0, 3, ""), RoundRecord(1)  # type: ignore[arg-type]
    assert channel.ask(None, list("abcdef"), Question("movement of B", {}, noise), record) is None  # type: ignore[arg-type]
    assert len(tried) == times
    assert len(record.failures) == times
