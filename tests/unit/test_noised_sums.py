"""Sums with noise: how vectors are shortened and noised, what is read of them, and what a run costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperlora.accounting import composed_epsilon
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.movements import MOVEMENTS
from hyperlora.messages.noised_questions import NOISED_KINDS, units_of
from hyperlora.messages.questions import Question
from hyperlora.noise import simulated_noise
from hyperlora.secure_sum.noised_vector import NoisedVector, Unit, needed
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.sums.shared_factor import framed, moved, movement
from strategies.engine.history import History
from strategies.engine.records import RoundRecord
from strategies.sums.head_start import start_from_sums
from strategies.sums.noise_plan import MOVEMENT, SHARES, NoisePlan
from strategies.sums.noised import NoisedSumsStrategy
from tests.builders import make_adapter

CLASSES, WIDTH, CLIENTS = 5, 12, 40


def silent(shape: Sequence[int]) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def form(noise: float = 1e-6, share: float = 0.8) -> NoisedVector:
    return NoisedVector({"one": Unit((3,), 2.0), "other": Unit((2, 2), 4.0)}, CLIENTS, noise, share)


def test_a_short_answer_comes_back_and_a_long_one_is_shortened() -> None:
    one = {"one": torch.tensor([0.5, -0.3, 0.1]), "other": torch.full((2, 2), -0.4)}
    back = form().decode(form().encode(one, silent, CLIENTS))
    torch.testing.assert_close(back, {name: value.double() for name, value in one.items()}, rtol=0, atol=1e-6)
    long = {name: 50 * value for name, value in one.items()}
    short = form().decode(form().encode(long, silent, CLIENTS))
    lengths = (short["one"] / 2.0).square().sum() + (short["other"] / 4.0).square().sum()
    assert 0.999 < float(lengths) <= 1.0
    torch.testing.assert_close(short["one"] / short["one"].norm(), back["one"] / back["one"].norm(), rtol=0, atol=1e-5)


def test_no_answer_is_longer_than_one_in_integers_either() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        one = {"one": torch.randn(3, generator=generator), "other": 9 * torch.randn(2, 2, generator=generator)}
        steps = form().encode(one, silent, CLIENTS).view(np.int32).astype(np.float64)
        assert np.linalg.norm(steps) <= form().steps


@pytest.mark.parametrize("answering", [32, 40])
def test_a_sum_has_the_noise_that_it_is_said_to_have_where_the_least_share_answers(answering: int) -> None:
    noise, layout = 3.0, NoisedVector({"one": Unit((4000,), 1.0)}, CLIENTS, 3.0, 0.8)
    zeros = {"one": torch.zeros(4000)}
    total = sum(layout.encode(zeros, simulated_noise(one), CLIENTS) for one in range(answering))
    deviation = float(layout.decode(np.asarray(total, dtype=np.uint32))["one"].std())
    assert deviation == pytest.approx(noise * math.sqrt(answering / 32), rel=0.05)


def test_a_sum_of_the_longest_answers_does_not_overflow() -> None:
    layout = NoisedVector({"one": Unit((2,), 1.0)}, 1000, 10.0, 0.8)
    one = {"one": torch.tensor([1.0, 0.0])}
    total = np.zeros(2, np.uint32)
    for client in range(1000):
        total = total + layout.encode(one, simulated_noise(client), 1000)
    assert float(layout.decode(total)["one"][0]) == pytest.approx(1000, abs=60)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"one": torch.zeros(3)}, "expected the tensors"),
        ({"one": torch.zeros(2), "other": torch.zeros(2, 2)}, "of shape"),
        ({"one": torch.tensor([0.0, math.nan, 0.0]), "other": torch.zeros(2, 2)}, "not finite"),
    ],
)
def test_an_answer_that_is_none_is_refused(tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        form().encode(tensors, silent, CLIENTS)


def test_the_least_share_is_rounded_up() -> None:
    assert [needed(count, 0.8) for count in (5, 10, 11, 120)] == [4, 8, 9, 96]


@pytest.mark.parametrize(
    ("kind", "noise"),
    [("noised scores", 0.0), ("classes", 1.0), ("movement of A", math.inf), ("movement of B", math.nan)],
)
def test_a_question_has_noise_where_its_answers_do(kind: str, noise: float) -> None:
    with pytest.raises(ProtocolError, match="cannot have noise"):
        Question(kind, {}, noise)


def adapter(seed: int, rank: int = 2) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(3, rank, 8, generator=generator), torch.randn(3, 6, rank, generator=generator)
    return Adapter({"attn.qkv": Factors(B=B, A=A)}, torch.randn(CLASSES, WIDTH + 1, generator=generator))


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_framed_adapter_is_the_same_product_with_an_orthogonal_factor(side: str) -> None:
    one = adapter(1)
    found, other = framed(one, adapter(0), side), "A" if side == "B" else "B"
    torch.testing.assert_close(product(found), product(one), rtol=0, atol=1e-4)
    factor = getattr(found.low_rank["attn.qkv"], other)
    gram = factor @ factor.mT if other == "A" else factor.mT @ factor
    torch.testing.assert_close(gram, gram[0, 0, 0] * torch.eye(2).expand(3, 2, 2), rtol=0, atol=1e-4)


def test_where_there_is_no_product_the_fresh_factor_stands() -> None:
    fresh = adapter(0)
    empty = Adapter({"attn.qkv": Factors(B=torch.zeros(3, 6, 2), A=torch.zeros(3, 2, 8))}, fresh.head)
    torch.testing.assert_close(framed(empty, fresh, "B").low_rank["attn.qkv"].A, fresh.low_rank["attn.qkv"].A)


def product(one: Adapter) -> Tensor:
    return one.low_rank["attn.qkv"].B @ one.low_rank["attn.qkv"].A


@pytest.mark.parametrize("side", ["A", "B"])
def test_an_average_of_movements_is_the_movement_of_the_average_product(side: str) -> None:
    start = adapter(0)
    ends = [with_factor(start, adapter(seed), side) for seed in (1, 2)]
    steps = [movement(start, end, side) for end in ends]
    found = moved(start, {name: (steps[0][name] + steps[1][name]) / 2 for name in steps[0]}, side)
    torch.testing.assert_close(product(found), (product(ends[0]) + product(ends[1])) / 2, rtol=0, atol=1e-5)


def with_factor(start: Adapter, other: Adapter, side: str) -> Adapter:
    own, theirs = start.low_rank["attn.qkv"], other.low_rank["attn.qkv"]
    B, A = (theirs.B, own.A) if side == "B" else (own.B, theirs.A)
    return Adapter({"attn.qkv": Factors(B=B, A=A)}, other.head)


@pytest.mark.parametrize("kind", NOISED_KINDS)
def test_every_kind_of_answer_has_units(kind: str) -> None:
    assert all(unit.length > 0 for unit in units_of(kind, adapter(0), 3, 1.5).values())


def test_the_largest_scores_have_length_one() -> None:
    most = {"accuracy": 1.0, "loss": 5.0, "validation": 5.0, "calibration": 1.0}
    units = units_of("noised scores", adapter(0), 4, 1.0)
    assert sum(4 * (most[name] / unit.length) ** 2 for name, unit in units.items()) == pytest.approx(1.0)


@pytest.mark.parametrize(("cohort", "rounds", "evaluations"), [(44, 10, 1), (16, 20, 4), (500, 3, 1)])
def test_a_whole_run_costs_its_epsilon_and_no_more(cohort: int, rounds: int, evaluations: int) -> None:
    plan = NoisePlan(8.0, 1e-5, rounds, evaluations, cohort, 88)
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert plan.spent(rounds, evaluations) == pytest.approx(8.0, rel=1e-3)
    assert plan.spent(rounds // 2, 0) < plan.spent(rounds, 0) < 8.0
    every = [(plan.noise(kind), plan.times(kind)) for kind in SHARES]
    assert composed_epsilon(every, 1e-5) <= 8.0 * (1 + 1e-6)


def test_shares_are_of_the_kinds_that_there_are() -> None:
    assert {*SHARES} - {MOVEMENT} == {*NOISED_KINDS} - {*MOVEMENTS.values()}


def test_clients_take_turns_whoever_is_away() -> None:
    """A thousand clients, a hundred a round, ten rounds, another one away in each: nobody is asked twice."""
    names, stub = [f"client-{one}" for one in range(1000)], SimpleNamespace(history=History())
    stub.settings = SimpleNamespace(seed=3, clients_per_round=100)
    for number in range(1, 11):
        there = [name for name in names if name != f"client-{7 * number}"]
        cohort = NoisedSumsStrategy._cohort(stub, there, number)  # type: ignore[arg-type]
        assert len(cohort) == 100
        stub.history.note_cohort(number, cohort)
    assert set(stub.history.asked.values()) == {1}


def test_a_first_sum_that_fails_or_cannot_be_leaves_the_start_as_it_is() -> None:
    start, record = make_adapter(0, fresh=True), RoundRecord(1)
    kind = len(start.head)
    zeros = {"counts": torch.zeros(1, kind), "sums": torch.zeros(1, kind, 5), "scatter": torch.zeros(1, 5, 5)}
    lie = {**zeros, **{name: torch.zeros(1) for name in ("freedom", "clients", "paired", "agreeing")}}
    for told in (None, SimpleNamespace(sums=lie, clients=("a",))):
        channel = SimpleNamespace(ask=lambda *_, told=told: told)
        assert start_from_sums(start, channel, None, ["a"], record) is start  # type: ignore[arg-type]
    assert "two samples" in record.missing_sums["classes"]
